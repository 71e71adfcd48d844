"""The segments of an id map, with what an annotation says of each. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from odise_pl.data.records import SegmentRecord


def segment_records(
    ids: NDArray[np.int32],
    categories: Mapping[int, int],
    isthing: Sequence[bool],
    crowds: Collection[int] = (),
) -> tuple[SegmentRecord, ...]:
    """The segments of a map in rising order of their ids, with areas and boxes.

    Args:
        ids: [H, W], 0 for void.
        categories: class index of each id; it may know more ids than the map has.
        isthing: one flag per class.
        crowds: ids of groups that are not split into objects.
    """
    values, numbers = np.unique(ids, return_inverse=True)
    numbers = numbers.reshape(ids.shape) + 1
    areas, places = np.bincount(numbers.ravel()), find_objects(numbers)
    return tuple(
        SegmentRecord(
            id=value,
            category=categories[value],
            isthing=isthing[categories[value]],
            iscrowd=value in crowds,
            area=int(areas[number]),
            bbox=_box(places[number - 1]),
        )
        for number, value in enumerate(values.tolist(), start=1)
        if value
    )


def _box(place: tuple[slice, slice]) -> tuple[int, ...]:
    rows, columns = place
    return columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
