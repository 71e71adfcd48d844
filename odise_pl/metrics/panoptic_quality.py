"""Panoptic quality by the rules of the COCO panoptic task (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from odise_pl.metrics.panoptic_matching import PanopticStats, match
from odise_pl.structures import PanopticSegmentation


@dataclass(frozen=True)
class Quality:
    """Means over the classes that occur in truth or prediction, each in 0..1; 0 if none occurs.

    Attributes:
        pq: panoptic quality.
        sq: segmentation quality, the mean IoU of matched segments.
        rq: recognition quality, the F1 score of segments.
        num_classes: number of these classes.
    """

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True)
class PanopticQualityResult:
    """Panoptic quality of a set of images.

    Attributes:
        all: means over all classes.
        things: means over things.
        stuff: means over stuff.
        pq, sq, rq: per class, float64 [K]; NaN for classes that do not occur.
        stats: the underlying counts.
    """

    all: Quality
    things: Quality
    stuff: Quality
    pq: Tensor
    sq: Tensor
    rq: Tensor
    stats: PanopticStats


class PanopticQuality(Metric):
    """A torchmetrics metric over :func:`match` and :func:`panoptic_quality`.

    Its state is integers, so the result does not depend on how images are split over ranks.

    Args:
        isthing: per class, whether it is a thing (True) or stuff.
        options: of :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    iou_units: Tensor
    tp: Tensor
    fp: Tensor
    fn: Tensor

    def __init__(self, isthing: Sequence[bool], **options: Any) -> None:
        super().__init__(**options)
        self.isthing = tuple(isthing)
        for name, counts in vars(PanopticStats.zeros(len(self.isthing))).items():
            self.add_state(name, counts, dist_reduce_fx="sum")

    @property
    def stats(self) -> PanopticStats:
        """The counts so far."""
        return PanopticStats(self.iou_units, self.tp, self.fp, self.fn)

    def update(self, prediction: PanopticSegmentation, truth: PanopticSegmentation) -> None:
        """Score an image; errors as in :func:`match`."""
        self.add(match(prediction, truth, len(self.isthing)))

    def add(self, stats: PanopticStats) -> None:
        """Add counts of other images."""
        for name, counts in vars(self.stats + stats).items():
            setattr(self, name, counts)

    def compute(self) -> dict[str, Tensor]:
        """``pq``, ``sq``, ``rq``, ``pq_things`` and ``pq_stuff`` of all ranks."""
        found = self.result
        values = {"pq": found.all.pq, "sq": found.all.sq, "rq": found.all.rq}
        values |= {"pq_things": found.things.pq, "pq_stuff": found.stuff.pq}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    @property
    def result(self) -> PanopticQualityResult:
        """The full result of this rank's images."""
        return panoptic_quality(self.stats, self.isthing)


def panoptic_quality(stats: PanopticStats, isthing: Sequence[bool]) -> PanopticQualityResult:
    """The panoptic quality of images.

    Args:
        stats: the sum of the images' :func:`~odise_pl.metrics.panoptic_matching.match`.
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
