"""The three metrics of a segmentation benchmark as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchmetrics.aggregation import SumMetric

from odise_pl.metrics.mask_ap import MaskAP, MaskAPResult
from odise_pl.metrics.mean_iou import MeanIoU, MeanIoUResult
from odise_pl.metrics.panoptic_quality import PanopticQuality, PanopticQualityResult
from odise_pl.structures import PanopticSegmentation, Prediction


@dataclass(frozen=True)
class EvaluationResult:
    """What was measured on one data set.

    Attributes:
        panoptic: panoptic quality.
        instances: average precision of object masks.
        semantic: mean IoU of class maps.
        names: name of each class.
        isthing: per class, whether it is a thing.
        left_out: samples that were not scored, because they are damaged or without labels.
    """

    panoptic: PanopticQualityResult
    instances: MaskAPResult
    semantic: MeanIoUResult
    names: tuple[str, ...]
    isthing: tuple[bool, ...]
    left_out: int = 0

    def scalars(self) -> dict[str, float]:
        """The headline numbers as fractions, by the names that logs carry."""
        return {
            "pq": self.panoptic.all.pq,
            "sq": self.panoptic.all.sq,
            "rq": self.panoptic.all.rq,
            "pq_things": self.panoptic.things.pq,
            "pq_stuff": self.panoptic.stuff.pq,
            "map": self.instances.ap,
            "ap50": self.instances.ap50,
            "miou": self.semantic.miou,
        }


class SegmentationMetrics(nn.Module):
    """Panoptic quality, mask AP and mean IoU of one data set.

    A module, so that it moves with the model that owns it; its states are in no checkpoint. Under
    ``torch.distributed`` every rank must call :meth:`compute`, and each gets the result over all ranks.

    Args:
        isthing: per class, whether it is a thing.
        names: name of each class.

    Raises:
        ValueError: no classes, or lists of different lengths.
    """

    def __init__(self, isthing: Sequence[bool], names: Sequence[str]) -> None:
        super().__init__()
        if len(isthing) != len(names):
            raise ValueError(
                f"{len(names)} class names for {len(isthing)} thing flags: give one each a class"
            )
        self.isthing = tuple(bool(flag) for flag in isthing)
        self.names = tuple(names)
        self.panoptic = PanopticQuality(self.isthing)
        self.instances = MaskAP(self.isthing)
        self.semantic = MeanIoU(len(self.isthing))
        self.left_out = SumMetric()

    def update(
        self,
        predictions: Sequence[Prediction],
        truths: Sequence[PanopticSegmentation],
        image_ids: Sequence[int],
    ) -> None:
        """Score images against truth of the same size; raises ValueError as the three metrics do."""
        self.panoptic.update([p.panoptic for p in predictions], truths, image_ids)
        self.instances.update([p.instances for p in predictions], truths, image_ids)
        self.semantic.update([p.semantic for p in predictions], truths, image_ids)
        self.leave_out(0)  # the sum has been asked for, even if nothing is left out

    def leave_out(self, samples: int) -> None:
        """Count samples that cannot be scored."""
        self.left_out.update(float(samples))

    def compute(self) -> EvaluationResult:
        """The result over everything seen since the last reset, on all ranks."""
        return EvaluationResult(
            panoptic=self.panoptic.compute(),
            instances=self.instances.compute(),
            semantic=self.semantic.compute(),
            names=self.names,
            isthing=self.isthing,
            left_out=int(self.left_out.compute()),
        )

    def reset(self) -> None:
        """Forget everything."""
        for metric in (self.panoptic, self.instances, self.semantic, self.left_out):
            metric.reset()
