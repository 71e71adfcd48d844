"""Convert label files to the members of a sample in a shard. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from odise_pl.data.images import check_stored, open_image, pack_image, resize_image, to_rgb
from odise_pl.data.label_maps import decode_values, encode_ids, encode_semantic, resize_ids, unique_ids
from odise_pl.data.prepare.panoptic import format_some
from odise_pl.data.prepare.source import Members, Problem, SourceSample
from odise_pl.data.records import PANOPTIC, RECORD, SEMANTIC, DataError
from odise_pl.data.segments import describe_segments

Ids = NDArray[np.int32]
Decode = Callable[[bytes], Ids]
VOID = -1  # in class maps
_UNKNOWN = -2
_JPEG_QUALITY = 95
_INSTANCE = 256  # the id of a thing is its class + 1 + 256 * number of the instance


@dataclass(frozen=True)
class Conversion:
    """How to convert the samples of a data set; can be pickled.

    Attributes:
        isthing: one flag per class.
        classes: decodes the first label file to class indices or ``VOID``, int32 [H, W].
        objects: decodes the second label file to ``class + 1 + 256 * number`` of the object of a pixel, 0 for
            none, int32 [H, W]; None if the data set has no objects.
        instances: instead of ``objects``, where classes come from the first file alone: decodes the second
            one to the number of the object of a pixel, 0 for none, int32 [H, W].
        short_side: images are scaled down to this shorter side; None keeps their size.
    """

    isthing: tuple[bool, ...]
    classes: Decode
    objects: Decode | None = None
    instances: Decode | None = None
    short_side: int | None = None

    @property
    def _decoders(self) -> tuple[Decode, ...]:
        return tuple(one for one in (self.classes, self.objects, self.instances) if one is not None)

    def check(self, sample: SourceSample) -> list[Problem]:
        """Read the files of a sample; returns the first fault."""
        file = sample.image
        try:
            size = check_stored(file.read())
            for file, decode in zip(sample.labels, self._decoders, strict=True):
                height, width = decode(file.read()).shape
                if (height, width) != size:
                    raise DataError(f"has {width}x{height} pixels, its image {size[1]}x{size[0]}")
        except DataError as error:
            return [Problem(sample.name, file.display_name, str(error))]
        return []

    def pack(self, sample: SourceSample) -> tuple[Members, int]:
        """The members of a sample without problems, and its number of segments."""
        pairs = zip(sample.labels, self._decoders, strict=True)
        classes, *objects = (self._scaled(decode(file.read())) for file, decode in pairs)
        crowds: set[int] = set()
        if self.instances is not None:
            ids, categories = number_instances(classes, objects[0], self.isthing)
            crowds = {index + 1 for index, thing in enumerate(self.isthing) if thing}
        else:
            ids = panoptic_ids(classes, objects[0], self.isthing) if objects else classes + 1
            categories = {value: _category(value, len(self.isthing)) for value in unique_ids(ids).tolist()}
        segments = describe_segments(ids, categories, self.isthing, crowds)
        record = replace(sample, size=(ids.shape[0], ids.shape[1]), segments=segments).record()
        suffix, image = self._image(sample)
        members = {suffix: image, PANOPTIC: encode_ids(ids), RECORD: record}
        if self.objects is not None:  # they may hide part of the semantic truth
            members[SEMANTIC] = encode_semantic(classes)
        return members, len(segments)

    def _scaled(self, ids: Ids) -> Ids:
        size = self._size((ids.shape[0], ids.shape[1]))
        return ids if size == ids.shape else resize_ids(ids, size)

    def _image(self, sample: SourceSample) -> tuple[str, bytes]:
        content = sample.image.read()
        if self.short_side is None:
            return pack_image(content)
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


def decode_pixels(content: bytes, channels: int) -> Ids:
    """Decode the stored values of a label image.

    Args:
        content: the file.
        channels: 1 for int32 [H, W], else int32 [H, W, C] with at least this number of channels.

    Raises:
        DataError: it cannot be decoded, or has another number of channels.
    """
    values = decode_values(content)
    found = 1 if values.ndim == 2 else values.shape[2]
    if found < channels or (channels == 1 and found > 1):
        raise DataError(f"has {found} channels, expected {channels}")
    return values


def decode_classes(content: bytes, table: Ids) -> Ids:
    """Decode a label image of one channel to class indices, see :func:`look_up`."""
    return look_up(decode_pixels(content, 1), table)


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


def panoptic_ids(classes: Ids, objects: Ids, isthing: Sequence[bool]) -> Ids:
    """A panoptic map, int32 [H, W], 0 for void: stuff from the class map, covered by objects.

    The id of stuff is its class index plus 1. Pixels of a thing class that no object covers are void.
    """
    stuff = np.array([*(not thing for thing in isthing), False])  # the last entry is for VOID, -1
    return np.where(objects > 0, objects, np.where(stuff[classes], classes + 1, 0))


def number_instances(classes: Ids, instances: Ids, isthing: Sequence[bool]) -> tuple[Ids, dict[int, int]]:
    """A panoptic map from a class map and the numbers of objects, int32 [H, W], 0 for void.

    The id of stuff, and of pixels of a thing class without an object, which are a crowd, is the class index
    plus 1. The ids of objects follow. Objects of different classes may have the same number.

    Returns:
        the map, and the class index of each id.
    """
    count = len(isthing)
    things = np.array([*isthing, False])[classes] & (instances > 0)  # the last entry is for VOID, -1
    pairs, numbers = np.unique(np.stack([classes[things], instances[things]]), axis=1, return_inverse=True)
    ids = classes + 1
    ids[things] = count + 1 + numbers.ravel()
    objects = enumerate(pairs[0].tolist(), start=count + 1)
    return ids, {**{index + 1: index for index in range(count)}, **dict(objects)}


def _category(value: int, classes: int) -> int:
    """The class of an id of :func:`panoptic_ids`."""
    return (value if value <= classes else value % _INSTANCE) - 1
