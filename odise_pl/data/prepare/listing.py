"""Data sets without an annotation file: label files have the names of their images. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from odise_pl.data.fields import plain_path
from odise_pl.data.manifest import Origin
from odise_pl.data.prepare.conversion import Conversion
from odise_pl.data.prepare.files import SourcePath
from odise_pl.data.prepare.source import Problem, Source, SourceSample, make_key
from odise_pl.data.records import DataError, prefix_errors
from odise_pl.vocabulary import Vocabulary

_MAX_DIGITS = 18  # fit into 64 bits


@dataclass(frozen=True)
class LabelFileSet:
    """A split of a data set with label files only.

    Attributes:
        dataset, split: see :class:`~odise_pl.data.manifest.Origin`.
        vocabulary, measures: see :class:`Source`.
        conversion: of its samples.
        images: folder of the images.
        labels: folders with a label file for each image.
        suffixes: replace the ending of an image in the names of its label files, one for each folder.
        endings: of images, in small letters; names in lists get the first.
    """

    dataset: str
    split: str
    vocabulary: Vocabulary
    conversion: Conversion
    images: SourcePath
    labels: tuple[SourcePath, ...]
    suffixes: tuple[str, ...]
    measures: tuple[str, ...] = ("semantic",)
    endings: tuple[str, ...] = (".jpg",)

    def from_folder(self) -> Source:
        """All images of the folder.

        Raises:
            DataError: the folder has no image, or one whose name a shard cannot hold.
        """
        found = [name for name in self.images.names() if name.lower().endswith(self.endings)]
        if not found:
            raise DataError(f"{self.images.path}: has no image ({', '.join(self.endings)})")
        problems = self._labels_without_image({self._stem(name) for name in found})
        return self._source(self.images.path, f"{self.images.display_name}/", found, problems)

    def from_list(self, listed: SourcePath) -> Source:
        """The images that a text file lists, one name without suffix per line.

        Raises:
            DataError: the list cannot be read, is empty, or has a name that is no plain path.
        """
        found = [
            f"{line.split()[0]}{self.endings[0]}" for line in listed.read_text().splitlines() if line.strip()
        ]
        if not found:
            raise DataError(f"{listed.path}: lists no images")
        return self._source(listed.path, listed.display_name, found, ())

    def _stem(self, name: str) -> str:
        ending = next(ending for ending in self.endings if name.lower().endswith(ending))
        return name[: -len(ending)]

    def _labels_without_image(self, stems: set[str]) -> Iterator[Problem]:
        cause = f"has no image of this name in {self.images.display_name}"
        for folder, suffix in zip(self.labels, self.suffixes, strict=True):
            for name in folder.names():
                if name.endswith(suffix) and name.removesuffix(suffix) not in stems:
                    yield Problem(folder.file(name).display_name, folder.file(name).display_name, cause)

    def _source(
        self, place: Path, annotations: str, found: Sequence[str], problems: Iterable[Problem]
    ) -> Source:
        with prefix_errors(f"{place}: an image name"):
            stems = [self._stem(plain_path(name)) for name in found]
        samples = [
            SourceSample(
                key=make_key(PurePosixPath(name).name),
                name=self.images.file(name).display_name,
                image=self.images.file(name),
                labels=tuple(
                    folder.file(stem + suffix)
                    for folder, suffix in zip(self.labels, self.suffixes, strict=True)
                ),
                image_id=number,
            )
            for name, stem, number in zip(found, stems, image_ids(stems), strict=True)
        ]
        _check_unique(samples)
        digest = hashlib.sha256("\n".join(stems).encode()).hexdigest()
        return Source(
            origin=Origin(self.dataset, self.split, annotations, digest),
            vocabulary=self.vocabulary,
            samples=tuple(sorted(samples, key=lambda sample: sample.key)),
            problems=tuple(problems),
            check=self.conversion.check,
            pack=self.conversion.pack,
            measures=self.measures,
        )


def _check_unique(samples: Sequence[SourceSample]) -> None:
    names: dict[str, str] = {}
    for sample in samples:
        other = names.setdefault(sample.key, sample.name)
        if other != sample.name:
            raise DataError(
                f"{other} and {sample.name} would have the same name in the shards; image names must be "
                f"unique without folder and suffix"
            )


def image_ids(stems: Sequence[str]) -> list[int]:
    """The number in each name (``2007_000033`` gives 2007000033).

    If numbers are missing, duplicate or too large for 64 bits, positions in the list from 1 are used instead.
    """
    digits = ["".join(re.findall("[0-9]", PurePosixPath(stem).name)) for stem in stems]
    numbers = [int(some) if 0 < len(some) <= _MAX_DIGITS else -1 for some in digits]
    if -1 in numbers or len(set(numbers)) < len(numbers):
        return list(range(1, len(stems) + 1))
    return numbers
