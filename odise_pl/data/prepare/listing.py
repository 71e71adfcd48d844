"""Samples of data sets that have no annotation file: images and label files go together by name.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from odise_pl.data.fields import plain_path
from odise_pl.data.files import SourceFile
from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.prepare.conversion import Conversion
from odise_pl.data.prepare.tree import Folder
from odise_pl.data.records import DataError, Problem, Source, SourceSample, key_of
from odise_pl.vocabulary import Vocabulary

_JPEG = (".jpg", ".jpeg")
_MOST_DIGITS = 18  # of a number of 64 bits


def folder_source(
    name: tuple[str, str],
    images: Folder,
    labels: Sequence[Folder],
    suffix: str,
    vocabulary: Vocabulary,
    conversion: Conversion,
    measures: Sequence[str],
) -> Source:
    """Every image of a folder with its label files.

    Args:
        name: of the data set and of the split.
        images: folder of images.
        labels: folders with a label file for each image; if it is that of the images, PNGs are images
            only if they have one.
        suffix: what stands in the name of a label file for ``.jpg``.
        vocabulary, conversion, measures: see :class:`Source`.

    Raises:
        DataError: there is no image.
    """
    names = images.names()
    found = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if images in labels:  # maps are PNGs, too
        there = set(names)
        found = [n for n in found if n.lower().endswith(_JPEG) or _stem(n) + suffix in there]
    if not found:
        raise DataError(f"{images.file('').path}: there is no image")
    known = {_stem(name) + suffix for name in found}
    unusable = [problem for n in found if (problem := _unusable(images.file(n), n))]
    found = [n for n in found if not _unusable(images.file(n), n)]
    strangers = [
        Problem(
            folder.file(n).shown,
            folder.file(n).shown,
            f"there is no image of this name in {images.file('').shown}",
        )
        for folder in labels
        for n in folder.names()
        if n.endswith(suffix) and n not in known
    ]
    problems = [*unusable, *strangers]
    return _source(
        name, images.file(""), found, images, labels, suffix, vocabulary, conversion, measures, problems
    )


def _unusable(file: SourceFile, name: str) -> Problem | None:
    """Says of a name on disk that no shard can hold it."""
    try:
        plain_path(name)
    except DataError as error:
        return Problem(file.shown, file.shown, f"its name {error}")
    return None


def listed_source(
    name: tuple[str, str],
    file: SourceFile,
    images: Folder,
    labels: Folder,
    suffix: str,
    vocabulary: Vocabulary,
    conversion: Conversion,
) -> Source:
    """The images that a text file lists, one name a line, with their semantic label files; as above.

    Raises:
        DataError: the list cannot be read or is empty.
    """
    stems = [line.split()[0] for line in read_lines(file) if line.strip()]
    if not stems:
        raise DataError(f"{file.path}: lists no image")
    there = defaultdict(list)
    for one in images.names():
        if one.lower().endswith(IMAGE_SUFFIXES):
            there[_stem(one)].append(one)
    found = [one for stem in stems for one in there.get(stem, [f"{stem}.jpg"])]
    return _source(name, file, found, images, (labels,), suffix, vocabulary, conversion, ("semantic",), [])


def read_lines(file: SourceFile) -> list[str]:
    """The lines of a text file in UTF-8.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return file.read().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file.path}: is not in UTF-8 ({error}); save it as UTF-8") from error


def _source(
    name: tuple[str, str],
    listed: SourceFile,
    found: Sequence[str],
    images: Folder,
    labels: Sequence[Folder],
    suffix: str,
    vocabulary: Vocabulary,
    conversion: Conversion,
    measures: Sequence[str],
    problems: Sequence[Problem],
) -> Source:
    """A sample for each image file that was ``found``."""
    try:
        stems = [_stem(plain_path(image)) for image in found]
    except DataError as error:
        raise DataError(f"{listed.path}: names an image that {error}") from error
    samples = [
        SourceSample(
            key=key_of(PurePosixPath(image).name),
            name=images.file(image).shown,
            image=images.file(image),
            labels=tuple(folder.file(stem + suffix) for folder in labels),
            image_id=number,
        )
        for image, stem, number in zip(found, stems, image_ids(stems), strict=True)
    ]
    _check_unique(samples)
    return Source(
        dataset=name[0],
        split=name[1],
        annotations=listed.shown,
        sha256=hashlib.sha256("\n".join(stems).encode()).hexdigest(),
        vocabulary=vocabulary,
        samples=tuple(sorted(samples, key=lambda sample: sample.key)),
        problems=tuple(problems),
        notes=(),
        examine=conversion.examine,
        members=conversion.members,
        measures=tuple(measures),
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
            f"{' and '.join(repeated[0])} would have one name in the shards{more}; the names of images must "
            f"differ without folders and suffixes"
        )


def image_ids(stems: Sequence[str]) -> list[int]:
    """The number in each name (``ADE_val_00000012`` is 12, ``2007_000033`` is 2007000033), or its place in
    the list where that does not tell all images apart, or is beyond 64 bits.
    """
    digits = ["".join(re.findall("[0-9]", PurePosixPath(stem).name)) for stem in stems]
    numbers = [int(some) if 0 < len(some) <= _MOST_DIGITS else -1 for some in digits]
    if -1 in numbers or len(set(numbers)) < len(numbers):
        return list(range(1, len(stems) + 1))
    return numbers
