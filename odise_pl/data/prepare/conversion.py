"""Convert label files to the members of a sample in a shard. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from odise_pl.data.images import open_image, open_stored, pack_image, resize_image, to_rgb
from odise_pl.data.label_maps import decode_values, encode_ids, encode_semantic, resize_ids, unique_ids
from odise_pl.data.prepare.files import SourceFile
from odise_pl.data.prepare.panoptic import format_some
from odise_pl.data.prepare.source import Members, Problem, SourceSample
from odise_pl.data.records import PANOPTIC, RECORD, SEMANTIC, DataError
from odise_pl.data.segments import describe_segments

Ids = NDArray[np.int32]
VOID = -1  # in class maps
_UNKNOWN = -2
_T = TypeVar("_T")
_JPEG_QUALITY = 95
_INSTANCE = 256  # the id of a thing is its class + 1 + 256 * number of the instance


class FileFault(DataError):
    """A fault of one file of a sample."""

    def __init__(self, file: SourceFile, cause: str) -> None:
        super().__init__(cause)
        self.file = file


@contextmanager
def blame_file(file: SourceFile) -> Iterator[None]:
    """Turn a DataError into a :class:`FileFault`."""
    try:
        yield
    except DataError as error:
        raise FileFault(file, str(error)) from error


@dataclass(frozen=True)
class Labels:
    """Labels of the pixels of a sample.

    Attributes:
        classes: int32 [H, W], class index or ``VOID``.
        instances: int32 [H, W], ``class + 1 + 256 * number`` of the object of a pixel, 0 for none; None if
            the data set has no objects.
    """

    classes: Ids
    instances: Ids | None = None


@dataclass(frozen=True)
class Conversion:
    """How to convert the samples of a data set; can be pickled.

    Attributes:
        read: reads the label files; raises :class:`FileFault`.
        isthing: one flag per class.
        short_side: images are scaled down to this shorter side; None keeps their size.
    """

    read: Callable[[SourceSample], Labels]
    isthing: tuple[bool, ...]
    short_side: int | None = None

    def check(self, sample: SourceSample) -> list[Problem]:
        """Read the files of a sample; returns the first fault of each file."""
        faults: list[FileFault] = []
        image, labels = _attempt(_open, sample, faults), _attempt(self.read, sample, faults)
        if image is not None and labels is not None and labels.classes.shape != (image.height, image.width):
            size = f"{labels.classes.shape[1]}x{labels.classes.shape[0]}"
            cause = f"has {size} pixels, its image {image.width}x{image.height}"
            faults.append(FileFault(sample.labels[0], cause))
        return [Problem(sample.name, fault.file.display_name, str(fault)) for fault in faults]

    def pack(self, sample: SourceSample) -> tuple[Members, int]:
        """The members of a sample without problems, and its number of segments."""
        labels = self._scaled(self.read(sample))
        ids = panoptic_ids(labels, self.isthing)
        categories = {value: _category(value, len(self.isthing)) for value in unique_ids(ids).tolist()}
        segments = describe_segments(ids, categories, self.isthing)
        record = replace(sample, size=(ids.shape[0], ids.shape[1]), segments=segments).record()
        suffix, image = self._image(sample)
        members = {suffix: image, PANOPTIC: encode_ids(ids), RECORD: record}
        if labels.instances is not None:  # objects may hide part of the semantic truth
            members[SEMANTIC] = encode_semantic(labels.classes)
        return members, len(segments)

    def _scaled(self, labels: Labels) -> Labels:
        size = self._size((labels.classes.shape[0], labels.classes.shape[1]))
        if size == labels.classes.shape:
            return labels
        instances = None if labels.instances is None else resize_ids(labels.instances, size)
        return Labels(resize_ids(labels.classes, size), instances)

    def _image(self, sample: SourceSample) -> tuple[str, bytes]:
        content = sample.image.read()
        image = open_image(content)
        size = self._size((image.height, image.width))
        if size == (image.height, image.width):
            return pack_image(content)
        buffer = io.BytesIO()
        resize_image(to_rgb(image), size).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        return "jpg", buffer.getvalue()

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.short_side is None or min(size) <= self.short_side:
            return size
        height, width = (round(side * self.short_side / min(size)) for side in size)
        return height, width


def _open(sample: SourceSample) -> Image.Image:
    with blame_file(sample.image):
        return open_stored(sample.image.read_checked())


def _attempt(read: Callable[[SourceSample], _T], sample: SourceSample, faults: list[FileFault]) -> _T | None:
    try:
        return read(sample)
    except FileFault as fault:
        faults.append(fault)
        return None


def read_pixels(file: SourceFile, channels: int) -> Ids:
    """Read the stored values of a label image.

    Args:
        file: the image.
        channels: 1 for int32 [H, W], else int32 [H, W, C] with at least this number of channels.

    Raises:
        DataError: it cannot be read, or has another number of channels.
    """
    values = decode_values(file.read_checked())
    found = 1 if values.ndim == 2 else values.shape[2]
    if found < channels or (channels == 1 and found > 1):
        raise DataError(f"has {found} channels, expected {channels}")
    return values


def class_table(index_of: Mapping[int, int], void: Iterable[int]) -> Ids:
    """Make a table from values of a label file to class indices, for :func:`look_up`.

    Args:
        index_of: class index of each value.
        void: values of void pixels, unless they have a class index.
    """
    table = np.full(max([*index_of, *void]) + 1, _UNKNOWN, dtype=np.int32)
    table[list(void)] = VOID
    table[list(index_of)] = list(index_of.values())
    return table


def look_up(values: Ids, table: Ids) -> Ids:
    """Map the values of a label file to class indices.

    Raises:
        DataError: the data set does not define some of the values.
    """
    found = np.unique(values)
    inside = (found >= 0) & (found < len(table))
    known = inside & (table[np.where(inside, found, 0)] != _UNKNOWN)
    if not known.all():
        some = format_some(set(found[~known].tolist()))
        raise DataError(f"has values that the data set does not define: {some}")
    return table[values]


def panoptic_ids(labels: Labels, isthing: Sequence[bool]) -> Ids:
    """A panoptic map, int32 [H, W], 0 for void: stuff from the class map, covered by things.

    Without instances every class is stuff. The id of stuff is its class index plus 1. Pixels of a thing class
    that no object covers are void.
    """
    ids = labels.classes + 1
    if labels.instances is None:
        return ids
    stuff = np.array([*(not thing for thing in isthing), False])  # the last entry is for VOID, -1
    return np.where(labels.instances > 0, labels.instances, np.where(stuff[labels.classes], ids, 0))


def _category(value: int, classes: int) -> int:
    """The class of an id of :func:`panoptic_ids`."""
    return (value if value <= classes else value % _INSTANCE) - 1
