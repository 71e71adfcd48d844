"""Object masks in COCO's notations: polygons and run-length codes. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from odise_pl.data import fields
from odise_pl.data.records import DataError

Rle = dict[str, Any]
_MAX_COORDINATE = 1e6  # pixels from the corner of the image


@dataclass(frozen=True)
class Objects:
    """Annotated objects of one image: classes int64 [N], crowd flags [N], areas [N], masks bool [N, H, W]."""

    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    masks: NDArray[np.bool_]


def encode_rle(segmentation: Any, size: tuple[int, int]) -> Rle:
    """COCO's compressed run-length code of polygons or of any run-length code.

    Raises:
        DataError: it is neither, or for an image of another size.
    """
    height, width = size
    try:
        if isinstance(segmentation, list):
            for polygon in segmentation:
                _check_polygon(polygon)
            return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
        if tuple(segmentation["size"]) != size:
            raise DataError(
                f"has a run-length code of size {segmentation['size']}, its image has {list(size)}"
            )
        if isinstance(segmentation["counts"], list):
            _check_counts(segmentation["counts"], height * width)
            return mask_api.frPyObjects(segmentation, height, width)
        counts = segmentation["counts"]
        code = counts.encode() if isinstance(counts, str) else counts
        _check_counts(_decode_lengths(code).tolist(), height * width)
        return {"size": list(size), "counts": code}
    except DataError:
        raise
    except Exception as error:  # the C code raises almost anything
        raise DataError(
            f"has a segmentation that is neither polygons nor run-length code ({error})"
        ) from error


def _check_polygon(polygon: Any) -> None:
    """Check what the C code does not: it drops an odd coordinate, takes four numbers for a box, and hangs on
    infinite coordinates.
    """
    numbers = isinstance(polygon, list) and {int, float}.issuperset(map(type, polygon))
    if not numbers or not all(abs(value) <= _MAX_COORDINATE for value in polygon):
        raise DataError(f"has a polygon {shortened(polygon)}, expected numbers up to {_MAX_COORDINATE:.0f}")
    if len(polygon) < 6 or len(polygon) % 2:
        raise DataError(f"has a polygon of {len(polygon)} numbers, expected x and y of at least three points")


def _decode_lengths(code: bytes) -> NDArray[np.int64]:
    """The run lengths of a compressed code, which the C code does not validate.

    Each character minus 48 holds five bits of a number, lowest first; its sixth bit is set if more follow.
    The fifth bit of the last character is the sign. From the fourth number on, each is the difference to the
    run length two before.
    """
    values = np.frombuffer(code, dtype=np.uint8).astype(np.int64) - ord("0")
    last = values & 32 == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not len(ends) or not last[-1] or values.min() < 0 or values.max() > 63 or (ends - starts).max() > 9:
        raise DataError("has a compressed run-length code with invalid characters")
    places = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((values & 31) << 5 * places, starts)
    numbers -= np.where(values[ends] & 16, 32 << 5 * places[ends], 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _check_counts(counts: Sequence[Any], pixels: int) -> None:
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != pixels:
        raise DataError(
            f"has run lengths that do not sum to its {pixels} pixels; encode the mask of the whole image, as "
            f"pycocotools.mask.encode does"
        )


def read_objects(content: bytes, size: tuple[int, int]) -> Objects:
    """Decode the objects of a sample.

    Raises:
        DataError: the content is damaged or for an image of another size.
    """
    items = fields.parse_json(content)
    if not isinstance(items, list):
        raise DataError("is not a list of objects")
    labels = [fields.integer(item, "category") for item in items]
    crowd = [fields.flag(item, "iscrowd") for item in items]
    areas = [fields.area(item, "area") for item in items]
    rles = [encode_rle(fields.segmentation(item, "segmentation"), size) for item in items]
    masks = mask_api.decode(rles) if rles else np.zeros((*size, 0), dtype=np.uint8)
    return Objects(
        np.array(labels, dtype=np.int64),
        np.array(crowd, dtype=bool),
        np.array(areas, dtype=np.float64),
        np.ascontiguousarray(masks.transpose(2, 0, 1)).astype(bool),
    )


def paint_ids(objects: Objects) -> NDArray[np.int32]:
    """Paint objects into an id map: int32 [H, W], number of the object from 1, 0 for void.

    Smaller objects cover larger ones, and all cover crowds.
    """
    sizes = objects.masks.sum(axis=(1, 2))
    ids = np.zeros(objects.masks.shape[1:], dtype=np.int32)
    for number in np.lexsort((-sizes, ~objects.crowd)):
        ids[objects.masks[number]] = number + 1
    return ids
