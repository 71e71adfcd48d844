"""Data sets without an annotation file: label files have the names of their images. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from odise_pl.data.fields import plain_path
from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.prepare.conversion import Conversion
from odise_pl.data.prepare.files import SourceFile
from odise_pl.data.prepare.source import Problem, Source, SourceSample, make_key
from odise_pl.data.prepare.tree import Folder
from odise_pl.data.records import DataError, prefix_errors
from odise_pl.vocabulary import Vocabulary

_JPEG = (".jpg", ".jpeg")
_MAX_DIGITS = 18  # fit into 64 bits


@dataclass(frozen=True)
class Benchmark:
    """A split of a data set with label files only.

    Attributes:
        dataset, split, vocabulary, measures: see :class:`Source`.
        conversion: of its samples.
        images: folder of the images.
        labels: folders with a label file for each image.
        suffix: replaces the suffix of an image in the name of its label file.
    """

    dataset: str
    split: str
    vocabulary: Vocabulary
    conversion: Conversion
    images: Folder
    labels: tuple[Folder, ...]
    suffix: str
    measures: tuple[str, ...] = ("semantic",)

    def from_folder(self) -> Source:
        """All images of the folder; where it holds label files too, a PNG is an image only if it has one.

        Raises:
            DataError: the folder has no image.
        """
        names = self.images.names()
        found = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        if self.images in self.labels:  # label files are PNGs, too
            all_names = set(names)
            found = [n for n in found if n.lower().endswith(_JPEG) or self._label(n) in all_names]
        if not found:
            raise DataError(f"{self.images.path}: has no image")
        usable, problems = [], list(self._labels_without_image({self._label(name) for name in found}))
        for name in found:
            try:
                usable.append(plain_path(name))
            except DataError as error:  # a shard cannot hold it
                shown = self.images.file(name).display_name
                problems.append(Problem(shown, shown, f"its name {error}"))
        return self._source(self.images.file("").display_name, usable, problems)

    def from_list(self, listed: SourceFile) -> Source:
        """The images that a text file lists, one name per line.

        Raises:
            DataError: the list cannot be read or is empty.
        """
        stems = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
        if not stems:
            raise DataError(f"{listed.path}: lists no images")
        by_stem = defaultdict(list)
        for name in self.images.names():
            if name.lower().endswith(IMAGE_SUFFIXES):
                by_stem[_stem(name)].append(name)
        with prefix_errors(f"{listed.path}: names an image that"):
            found = [plain_path(name) for stem in stems for name in by_stem.get(stem, [f"{stem}.jpg"])]
        return self._source(listed.display_name, found, ())

    def _label(self, name: str) -> str:
        return _stem(name) + self.suffix

    def _labels_without_image(self, expected: set[str]) -> Iterator[Problem]:
        cause = f"has no image of this name in {self.images.file('').display_name}"
        for folder in self.labels:
            for name in folder.names():
                if name.endswith(self.suffix) and name not in expected:
                    yield Problem(folder.file(name).display_name, folder.file(name).display_name, cause)

    def _source(self, annotations: str, found: Sequence[str], problems: Sequence[Problem]) -> Source:
        stems = [_stem(name) for name in found]
        samples = [
            SourceSample(
                key=make_key(PurePosixPath(name).name),
                name=self.images.file(name).display_name,
                image=self.images.file(name),
                labels=tuple(folder.file(self._label(name)) for folder in self.labels),
                image_id=number,
            )
            for name, number in zip(found, image_ids(stems), strict=True)
        ]
        _check_unique(samples)
        return Source(
            dataset=self.dataset,
            split=self.split,
            annotations=annotations,
            sha256=hashlib.sha256("\n".join(stems).encode()).hexdigest(),
            vocabulary=self.vocabulary,
            samples=tuple(sorted(samples, key=lambda sample: sample.key)),
            problems=tuple(problems),
            notes=(),
            check=self.conversion.check,
            pack=self.conversion.pack,
            measures=self.measures,
        )


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _check_unique(samples: Sequence[SourceSample]) -> None:
    names = defaultdict(list)
    for sample in samples:
        names[sample.key].append(sample.name)
    repeated = [some for some in names.values() if len(some) > 1]
    if repeated:
        more = f" (and {len(repeated) - 1} more such groups)" if len(repeated) > 1 else ""
        raise DataError(
            f"{' and '.join(repeated[0])} would have the same name in the shards{more}; image names must be "
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
