"""Panoptic quality by the rules of the COCO panoptic task (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odise_pl.metrics.images import image_names
from odise_pl.metrics.panoptic_matching import PanopticStats, match
from odise_pl.metrics.result_metric import ResultMetric
from odise_pl.structures import PanopticSegmentation


@dataclass(frozen=True)
class Quality:
    """Means over the ``num_classes`` classes that occur, each in 0..1; 0 when none occurs.

    Attributes:
        pq: panoptic quality.
        sq: segmentation quality, the mean IoU of matched segments.
        rq: recognition quality, the F1 score of segments.
        num_classes: number of classes that occur (in truth or prediction) and were averaged.
    """

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True)
class PanopticQualityResult:
    """Panoptic quality of a set of images.

    Attributes:
        all: means over all classes that occur.
        things: means over the things among them.
        stuff: means over the stuff among them.
        pq, sq, rq: per class, float64 [K] in main memory; NaN for a class that does not occur.
        stats: the counts behind them, in main memory.
        num_images: number of images that were scored.
    """

    all: Quality
    things: Quality
    stuff: Quality
    pq: Tensor
    sq: Tensor
    rq: Tensor
    stats: PanopticStats
    num_images: int

    def over(self, chosen: Tensor) -> Quality:
        """Means over the classes among ``chosen``, bool [K], that occur."""
        return _mean_quality(self.pq, self.sq, self.rq, chosen)


class PanopticQuality(ResultMetric):
    """Panoptic quality over images and ranks; fractions in 0..1.

    The states are integers summed over the ranks, so the result does not depend on how images are split.

    Args:
        isthing: per class, whether it is a thing (True) or stuff.

    Raises:
        ValueError: without classes.
    """

    iou_units: Tensor
    tp: Tensor
    fp: Tensor
    fn: Tensor
    num_images: Tensor

    def __init__(self, isthing: Sequence[bool]) -> None:
        super().__init__()
        if len(isthing) == 0:
            raise ValueError("isthing is empty: panoptic quality needs at least one class")
        self.isthing = tuple(bool(flag) for flag in isthing)
        for name in ("iou_units", "tp", "fp", "fn"):
            default = torch.zeros(len(self.isthing), dtype=torch.int64)
            self.add_state(name, default=default, dist_reduce_fx="sum")
        self.add_state("num_images", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        predictions: Sequence[PanopticSegmentation],
        truths: Sequence[PanopticSegmentation],
        image_ids: Sequence[int] | None = None,
    ) -> None:
        """Score images; ``image_ids`` name them in messages. Raises as :func:`match` does."""
        names = image_names(len(predictions), len(truths), image_ids)
        for prediction, truth, name in zip(predictions, truths, names, strict=True):
            stats = match(prediction, truth, len(self.isthing), name).to(self.device)
            self.iou_units += stats.iou_units
            self.tp += stats.tp
            self.fp += stats.fp
            self.fn += stats.fn
        self.num_images += len(predictions)

    def compute(self) -> PanopticQualityResult:
        """The qualities of everything seen so far on all ranks."""
        stats = PanopticStats(self.iou_units, self.tp, self.fp, self.fn).to("cpu")
        pq, sq, rq = class_qualities(stats)
        things = torch.tensor(self.isthing)
        return PanopticQualityResult(
            all=_mean_quality(pq, sq, rq, torch.ones_like(things)),
            things=_mean_quality(pq, sq, rq, things),
            stuff=_mean_quality(pq, sq, rq, ~things),
            pq=pq,
            sq=sq,
            rq=rq,
            stats=stats,
            num_images=int(self.num_images),
        )


def class_qualities(stats: PanopticStats) -> tuple[Tensor, Tensor, Tensor]:
    """PQ, SQ and RQ per class, float64 [K]; NaN for classes that do not occur."""
    occurs = stats.tp + stats.fp + stats.fn > 0
    segments = stats.tp + 0.5 * (stats.fp + stats.fn).double()
    missing = torch.full_like(segments, float("nan"))
    pq = torch.where(occurs, stats.iou_sum / segments, missing)
    sq = torch.where(occurs, stats.iou_sum / stats.tp.clamp(min=1), missing)
    rq = torch.where(occurs, stats.tp / segments, missing)
    return pq, sq, rq


def _mean_quality(pq: Tensor, sq: Tensor, rq: Tensor, chosen: Tensor) -> Quality:
    chosen = chosen & ~pq.isnan()
    count = int(chosen.sum())
    pq_mean, sq_mean, rq_mean = (float(q[chosen].sum()) / max(count, 1) for q in (pq, sq, rq))
    return Quality(pq=pq_mean, sq=sq_mean, rq=rq_mean, num_classes=count)
