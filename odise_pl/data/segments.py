"""The segments of an id map, with what an annotation says of each. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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
    # an id map consists of runs along its rows, far fewer than pixels
    changed = np.ones(ids.shape, dtype=bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=changed[:, 1:])
    rows, starts = np.nonzero(changed)
    ends = np.append(starts[1:], 0)
    ends[ends == 0] = ids.shape[1]
    values, numbers = np.unique(ids[rows, starts], return_inverse=True)
    areas = np.bincount(numbers, ends - starts)
    top, left = (_of_each(np.minimum, numbers, x) for x in (rows, starts))
    bottom, right = (_of_each(np.maximum, numbers, x) for x in (rows + 1, ends))
    boxes = np.stack([left, top, right - left, bottom - top], axis=1)
    return tuple(
        SegmentRecord(
            id=value,
            category=categories[value],
            isthing=isthing[categories[value]],
            iscrowd=value in crowds,
            area=int(area),
            bbox=tuple(box),
        )
        for value, area, box in zip(values.tolist(), areas, boxes.tolist(), strict=True)
        if value
    )


def _of_each(extreme: np.ufunc, numbers: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest or largest place under each number, all of which occur."""
    found = np.empty(numbers.max() + 1, dtype=np.int64)
    found[numbers] = places
    extreme.at(found, numbers, places)
    return found
