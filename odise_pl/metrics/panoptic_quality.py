"""Panoptic quality by the rules of the COCO panoptic task (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from odise_pl.metrics.overlap import IntArray, count_overlaps
from odise_pl.structures import PanopticSegmentation, Segment

# IoUs are summed as integers in units of 2^-36, because integer sums do not depend on their order: any number
# of ranks gives the same result. The rounding error is below 1e-11 per match. Maps of 2^27 pixels and 2^27
# matches per class fit into 64 bits.
IOU_BITS = 36


@dataclass(frozen=True)
class Quality:
    """Means over the classes that occur in truth or prediction, each in 0..1; 0 if none occurs.

    Attributes:
        pq: panoptic quality.
        sq: segmentation quality, the mean IoU of matched segments.
        rq: recognition quality, the F1 score of segments.
        classes: number of these classes.
    """

    pq: float
    sq: float
    rq: float
    classes: int


@dataclass(frozen=True)
class PanopticQualityResult:
    """Panoptic quality of a set of images.

    Attributes:
        all: means over all classes.
        things: means over things.
        stuff: means over stuff.
        pq, sq, rq: per class, float64 [K]; NaN for classes that do not occur.
        tp, fp, fn: per class, int64 [K]: matched pairs, wrong predicted segments, missed true segments.
    """

    all: Quality
    things: Quality
    stuff: Quality
    pq: Tensor
    sq: Tensor
    rq: Tensor
    tp: Tensor
    fp: Tensor
    fn: Tensor


class PanopticQuality(Metric):
    """Panoptic quality as a torchmetrics metric, for models and training loops of any kind.

    Its state is integers, so the result does not depend on how images are split over ranks.

    Args:
        isthing: per class, whether it is a thing (True) or stuff.
        options: of :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, isthing: Sequence[bool], **options: Any) -> None:
        super().__init__(**options)
        self.isthing = tuple(isthing)
        self.add_state("counts", torch.zeros(4, len(self.isthing), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: PanopticSegmentation, truth: PanopticSegmentation) -> None:
        """Score an image; errors as in :func:`count_matches`."""
        self.counts += count_matches(prediction, truth, len(self.isthing)).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """``pq``, ``sq``, ``rq``, ``pq_things`` and ``pq_stuff`` in 0..1."""
        found = panoptic_quality(self.counts.cpu(), self.isthing)
        values = {"pq": found.all.pq, "sq": found.all.sq, "rq": found.all.rq}
        values |= {"pq_things": found.things.pq, "pq_stuff": found.stuff.pq}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def count_matches(prediction: PanopticSegmentation, truth: PanopticSegmentation, num_classes: int) -> Tensor:
    """Match the segments of one image by the rules of COCO's panoptic task.

    A predicted and a true segment of the same class match if their IoU exceeds 0.5; void pixels of the truth
    do not count towards the union. True crowd segments are neither matched nor missed. An unmatched predicted
    segment is ignored if more than half of it is on void or on the crowd segment of its class; the last
    listed one if there are several, as in COCO's own script. True segments without pixels are missed.

    Args:
        prediction: on any device; ids of any size, 0 for void.
        truth: on any device; its categories are in 0..K-1.
        num_classes: K.

    Returns:
        int64 [4, K] on the CPU: the sum of the IoUs of the matched pairs in units of 2**-36, and the numbers
        of matched pairs, wrong predicted segments and missed true segments of each class.

    Raises:
        ValueError: sizes differ, a pixel's id is not listed, or a predicted segment has no pixels.
    """
    predicted_ids, true_ids = ([0, *(s.id for s in side.segments)] for side in (prediction, truth))
    overlaps = count_overlaps(prediction.ids, truth.ids, predicted_ids, true_ids)
    empty = np.flatnonzero(overlaps.sum(axis=0)[1:] == 0)
    if len(empty):
        raise ValueError(
            f"the prediction lists segment id {predicted_ids[1 + empty[0]]} without pixels of its own: list "
            "each segment with pixels once, and not 0 (void)"
        )
    return _match(overlaps, truth.segments, prediction.segments, num_classes)


def _match(
    overlaps: IntArray, truth: Sequence[Segment], prediction: Sequence[Segment], num_classes: int
) -> Tensor:
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
    counted = (classes[index], classes[~hit & ~ignored], true_classes[~true_hit & ~crowd])
    counts = [np.bincount(labels, minlength=num_classes) for labels in counted]
    return torch.from_numpy(np.stack([iou_units, *counts]))


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


def panoptic_quality(counts: Tensor, isthing: Sequence[bool]) -> PanopticQualityResult:
    """The panoptic quality of images.

    Args:
        counts: int64 [4, K], the sum of the images' :func:`count_matches`.
        isthing: per class, whether it is a thing (True) or stuff.
    """
    iou_units, tp, fp, fn = counts
    iou_sum = iou_units.double() / (1 << IOU_BITS)
    occurs = tp + fp + fn > 0
    segments = tp + 0.5 * (fp + fn).double()
    missing = torch.full_like(segments, float("nan"))
    pq = torch.where(occurs, iou_sum / segments, missing)
    sq = torch.where(occurs, iou_sum / tp.clamp(min=1), missing)
    rq = torch.where(occurs, tp / segments, missing)
    things = torch.tensor(isthing)
    quality, of_things, of_stuff = (
        _mean_quality(pq, sq, rq, chosen) for chosen in (torch.ones_like(things), things, ~things)
    )
    return PanopticQualityResult(quality, of_things, of_stuff, pq, sq, rq, tp, fp, fn)


def _mean_quality(pq: Tensor, sq: Tensor, rq: Tensor, chosen: Tensor) -> Quality:
    chosen = chosen & ~pq.isnan()
    count = int(chosen.sum())
    pq_mean, sq_mean, rq_mean = (float(q[chosen].sum()) / max(count, 1) for q in (pq, sq, rq))
    return Quality(pq_mean, sq_mean, rq_mean, count)
