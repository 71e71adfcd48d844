"""Matching of panoptic segments by the rules of the COCO panoptic task (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from odise_pl.metrics.images import check_label_map, check_same_size
from odise_pl.metrics.overlap import IntArray, count_overlaps, unlisted_value
from odise_pl.structures import PanopticSegmentation, Segment

# IoUs are summed as integers in units of 2^-36, because integer sums do not depend on their order: any number
# of ranks gives the same result. The rounding error is below 1e-11 per match. Maps of 2^27 pixels and 2^27
# matches per class fit into 64 bits.
IOU_BITS = 36


@dataclass(frozen=True)
class PanopticStats:
    """The counts that determine the panoptic quality, per class; all int64 [K] on the CPU.

    Attributes:
        iou_units: sum of the IoUs of the matched pairs, in units of 2**-36.
        tp: matched pairs of a predicted and a true segment.
        fp: wrong predicted segments.
        fn: missed true segments.
    """

    iou_units: Tensor
    tp: Tensor
    fp: Tensor
    fn: Tensor

    @classmethod
    def zeros(cls, num_classes: int) -> PanopticStats:
        """The counts of no image."""
        return cls(*(torch.zeros(num_classes, dtype=torch.int64) for _ in fields(cls)))

    def __add__(self, other: PanopticStats) -> PanopticStats:
        return PanopticStats(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def iou_sum(self) -> Tensor:
        """Sum of the IoUs of the matched pairs, float64 [K]."""
        return self.iou_units.double() / (1 << IOU_BITS)


def match(
    prediction: PanopticSegmentation, truth: PanopticSegmentation, num_classes: int, image: str = "image"
) -> PanopticStats:
    """Match the segments of one image by the rules of COCO's panoptic task.

    A predicted and a true segment of the same class match if their IoU exceeds 0.5; void pixels of the truth
    do not count towards the union. True crowd segments are neither matched nor missed. An unmatched predicted
    segment is ignored if more than half of it is on void or on the crowd segment of its class; the last
    listed one if there are several, as in COCO's own script. True segments without pixels are missed.

    Args:
        prediction: on any device; ids of any size, 0 for void.
        truth: on the same device.
        num_classes: K.
        image: name in messages.

    Raises:
        ValueError: sizes differ, a map is not integer, a pixel's id is not listed, a listed id is 0,
            duplicate or (in the prediction) without pixels, or a category is not in 0..K-1.
    """
    check_label_map(prediction.ids, f"the prediction of {image}")
    check_label_map(truth.ids, f"the truth of {image}")
    check_same_size(prediction.ids, truth.ids, image)
    predicted_ids = _segment_ids(prediction, num_classes, f"the prediction of {image}")
    true_ids = _segment_ids(truth, num_classes, f"the truth of {image}")
    overlaps = count_overlaps(truth.ids, prediction.ids, true_ids, predicted_ids)
    if overlaps[-1].any():
        _raise_unlisted(truth.ids, true_ids, f"the truth of {image}")
    if overlaps[:, -1].any():
        _raise_unlisted(prediction.ids, predicted_ids, f"the prediction of {image}")
    overlaps = overlaps[:-1, :-1]
    _check_areas(overlaps.sum(axis=0), predicted_ids, image)
    return _match_overlaps(overlaps, truth.segments, prediction.segments, num_classes)


def _segment_ids(segmentation: PanopticSegmentation, num_classes: int, where: str) -> list[int]:
    """0 for void, then the distinct ids of the segments."""
    ids = [0]
    for segment in segmentation.segments:
        if not 0 <= segment.category < num_classes:
            raise ValueError(
                f"{where}: segment {segment.id} has category {segment.category}, "
                f"which is not one of the {num_classes} classes (0..{num_classes - 1})"
            )
        ids.append(segment.id)
    if len(set(ids)) < len(ids):
        repeated = next(i for position, i in enumerate(ids) if i in ids[:position])
        reason = "is reserved for void" if repeated == 0 else "is a duplicate"
        raise ValueError(f"{where}: the segment id {repeated} {reason}")
    return ids


def _raise_unlisted(ids: Tensor, listed: list[int], where: str) -> NoReturn:
    raise ValueError(
        f"{where}: the map has pixels of the unlisted segment id {unlisted_value(ids, listed)}; list it, or "
        "set these pixels to 0 (void)"
    )


def _check_areas(areas: IntArray, ids: list[int], image: str) -> None:
    empty = [i for i, area in zip(ids[1:], areas[1:], strict=True) if area == 0]
    if empty:
        raise ValueError(
            f"the prediction of {image}: the listed segment id {empty[0]} has no pixels; list only segments "
            "that have pixels"
        )


def _match_overlaps(
    overlaps: IntArray, truth: Sequence[Segment], prediction: Sequence[Segment], num_classes: int
) -> PanopticStats:
    """Match by the table of overlaps [T + 1, P + 1], in which the first row and column are void."""
    true_areas, areas = overlaps.sum(axis=1)[1:], overlaps.sum(axis=0)[1:]
    void, inside = overlaps[0, 1:], overlaps[1:, 1:]
    true_classes, classes = _classes(truth), _classes(prediction)
    crowd = np.array([segment.iscrowd for segment in truth], dtype=bool)

    union = true_areas[:, None] + (areas - void) - inside
    matched = (2 * inside > union) & (true_classes[:, None] == classes) & ~crowd[:, None]
    true_index, index = np.nonzero(matched)
    hit, true_hit = matched.any(axis=0), matched.any(axis=1)
    ignored = 2 * (void + _crowd_overlap(overlaps, truth, prediction)) > areas

    iou_units = np.zeros(num_classes, dtype=np.int64)
    np.add.at(iou_units, classes[index], _iou_units(inside[true_index, index], union[true_index, index]))
    return PanopticStats(
        iou_units=torch.from_numpy(iou_units),
        tp=_histogram(classes[index], num_classes),
        fp=_histogram(classes[~hit & ~ignored], num_classes),
        fn=_histogram(true_classes[~true_hit & ~crowd], num_classes),
    )


def _classes(segments: Sequence[Segment]) -> IntArray:
    return np.array([segment.category for segment in segments], dtype=np.int64)


def _crowd_overlap(overlaps: IntArray, truth: Sequence[Segment], prediction: Sequence[Segment]) -> IntArray:
    """Pixels [P] of each predicted segment on the crowd segment of its class."""
    rows = {segment.category: row for row, segment in enumerate(truth, start=1) if segment.iscrowd}
    row_of = np.array([rows.get(segment.category, 0) for segment in prediction], dtype=np.int64)
    return np.where(row_of > 0, overlaps[row_of, np.arange(1, len(prediction) + 1)], 0)


def _iou_units(intersection: IntArray, union: IntArray) -> IntArray:
    """IoU rounded to a multiple of 2**-36, as integers."""
    return ((intersection << IOU_BITS) + union // 2) // union


def _histogram(classes: IntArray, num_classes: int) -> Tensor:
    return torch.from_numpy(np.bincount(classes, minlength=num_classes))
