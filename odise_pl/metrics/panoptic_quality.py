"""Panoptic quality by the rules of the COCO panoptic task (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odise_pl.metrics.panoptic_matching import PanopticStats


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
        pq, sq, rq: per class, float64 [K]; NaN for a class that does not occur.
        stats: the counts behind them.
    """

    all: Quality
    things: Quality
    stuff: Quality
    pq: Tensor
    sq: Tensor
    rq: Tensor
    stats: PanopticStats


def panoptic_quality(stats: PanopticStats, isthing: Sequence[bool]) -> PanopticQualityResult:
    """The qualities of images, of which :func:`~odise_pl.metrics.panoptic_matching.match` made the stats.

    Args:
        stats: of K classes.
        isthing: per class, whether it is a thing (True) or stuff.
    """
    occurs = stats.tp + stats.fp + stats.fn > 0
    segments = stats.tp + 0.5 * (stats.fp + stats.fn).double()
    missing = torch.full_like(segments, float("nan"))
    pq = torch.where(occurs, stats.iou_sum / segments, missing)
    sq = torch.where(occurs, stats.iou_sum / stats.tp.clamp(min=1), missing)
    rq = torch.where(occurs, stats.tp / segments, missing)
    things = torch.tensor(isthing)
    return PanopticQualityResult(
        all=_mean_quality(pq, sq, rq, torch.ones_like(things)),
        things=_mean_quality(pq, sq, rq, things),
        stuff=_mean_quality(pq, sq, rq, ~things),
        pq=pq,
        sq=sq,
        rq=rq,
        stats=stats,
    )


def _mean_quality(pq: Tensor, sq: Tensor, rq: Tensor, chosen: Tensor) -> Quality:
    chosen = chosen & ~pq.isnan()
    count = int(chosen.sum())
    pq_mean, sq_mean, rq_mean = (float(q[chosen].sum()) / max(count, 1) for q in (pq, sq, rq))
    return Quality(pq=pq_mean, sq=sq_mean, rq=rq_mean, num_classes=count)
