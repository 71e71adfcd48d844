"""Describe the segments of an id map. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from odise_pl.data.label_maps import unique_ids
from odise_pl.data.records import SegmentRecord


def describe_segments(
    ids: NDArray[np.int32],
    categories: Mapping[int, int],
    isthing: Sequence[bool],
    crowds: Collection[int] = (),
) -> tuple[SegmentRecord, ...]:
    """The segments of a map in ascending order of ids, with areas and boxes.

    Args:
        ids: [H, W], 0 for void.
        categories: class index of each id; may have more ids than the map.
        isthing: one flag per class.
        crowds: ids of crowds.
    """
    values = unique_ids(ids)
    numbers = np.searchsorted(values, ids)
    areas = np.bincount(numbers.ravel(), minlength=len(values)).tolist()
    extents = ndimage.find_objects(numbers + 1)
    return tuple(
        SegmentRecord(
            id=value,
            category=categories[value],
            isthing=isthing[categories[value]],
            iscrowd=value in crowds,
            area=area,
            bbox=(x.start, y.start, x.stop - x.start, y.stop - y.start),
        )
        for value, area, (y, x) in zip(values.tolist(), areas, extents, strict=True)
        if value
    )
