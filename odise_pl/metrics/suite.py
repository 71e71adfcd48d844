"""The metrics of a segmentation benchmark as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.aggregation import SumMetric

from odise_pl.measures import MEASURES
from odise_pl.metrics.mask_ap import MaskAP, MaskAPResult
from odise_pl.metrics.mean_iou import MeanIoU, MeanIoUResult
from odise_pl.metrics.panoptic_quality import PanopticQuality, PanopticQualityResult
from odise_pl.structures import Prediction, Truth

GROUPS = ("base", "novel")


@dataclass(frozen=True)
class EvaluationResult:
    """What was measured on one data set.

    Attributes:
        panoptic: panoptic quality; None if it was not measured.
        instances: average precision of object masks; None if it was not measured.
        semantic: mean IoU of class maps; None if it was not measured.
        names: name of each class.
        isthing: per class, whether it is a thing.
        num_images: images that were scored.
        seen: per class, whether the model was trained on a class of that name; None if nobody knows.
        left_out: samples that were not scored, because they are damaged or without labels.
    """

    panoptic: PanopticQualityResult | None
    instances: MaskAPResult | None
    semantic: MeanIoUResult | None
    names: tuple[str, ...]
    isthing: tuple[bool, ...]
    num_images: int
    seen: tuple[bool, ...] | None = None
    left_out: int = 0

    def scalars(self) -> dict[str, float]:
        """The headline numbers as fractions, by the names that logs carry; of what was measured.

        If some classes were seen in training and others not, means over the two groups have the endings
        ``_base`` and ``_novel``.
        """
        values: dict[str, float] = {}
        if self.panoptic is not None:
            quality = self.panoptic.all
            values |= {"pq": quality.pq, "sq": quality.sq, "rq": quality.rq}
            values |= {"pq_things": self.panoptic.things.pq, "pq_stuff": self.panoptic.stuff.pq}
        if self.instances is not None:
            values |= {"map": self.instances.ap, "ap50": self.instances.ap50}
        if self.semantic is not None:
            values["miou"] = self.semantic.miou
        groups = self.groups()
        return values | {f"{name}_{group}": v for group, part in groups.items() for name, v in part.items()}

    def groups(self) -> dict[str, dict[str, float]]:
        """``pq``, ``map`` and ``miou`` of base and novel classes, as far as classes of both occur.

        Empty if all classes were seen in training, or none, or nobody knows.
        """
        if self.seen is None or all(self.seen) or not any(self.seen):
            return {}
        seen = torch.tensor(self.seen)
        return {group: self._means(chosen) for group, chosen in zip(GROUPS, (seen, ~seen), strict=True)}

    def _means(self, chosen: Tensor) -> dict[str, float]:
        columns = {
            "pq": None if self.panoptic is None else self.panoptic.pq,
            "map": None if self.instances is None else self.instances.per_class,
            "miou": None if self.semantic is None else self.semantic.per_class,
        }
        values = {name: v[chosen & ~v.isnan()] for name, v in columns.items() if v is not None}
        return {name: float(v.mean()) for name, v in values.items() if len(v)}


class SegmentationMetrics(nn.Module):
    """Panoptic quality, mask AP and mean IoU of one data set, or some of them.

    A module, so that it moves with the model that owns it; its states are in no checkpoint. Under
    ``torch.distributed`` every rank must call :meth:`compute`, and each gets the result over all ranks.

    Args:
        isthing: per class, whether it is a thing.
        names: name of each class.
        seen: per class, whether the model was trained on it; results are split by it.
        measures: what is measured, of :data:`MEASURES`.

    Raises:
        ValueError: no classes, or lists of different lengths.
    """

    def __init__(
        self,
        isthing: Sequence[bool],
        names: Sequence[str],
        seen: Sequence[bool] | None = None,
        measures: Sequence[str] = MEASURES,
    ) -> None:
        super().__init__()
        if len(isthing) != len(names):
            raise ValueError(
                f"{len(names)} class names for {len(isthing)} thing flags: give one each a class"
            )
        self.isthing, self.names = tuple(bool(flag) for flag in isthing), tuple(names)
        self.seen = None if seen is None else tuple(seen)
        self.panoptic = PanopticQuality(self.isthing) if "panoptic" in measures else None
        self.instances = MaskAP(self.isthing) if "instances" in measures else None
        self.semantic = MeanIoU(len(self.isthing)) if "semantic" in measures else None
        self.num_images, self.left_out = SumMetric(), SumMetric()

    def update(
        self, predictions: Sequence[Prediction], truths: Sequence[Truth], image_ids: Sequence[int]
    ) -> None:
        """Score images against truth of the same size; raises ValueError as the metrics do."""
        if self.panoptic is not None:
            self.panoptic.update([p.panoptic for p in predictions], [t.panoptic for t in truths], image_ids)
        if self.instances is not None:
            objects = [t.panoptic if t.instances is None else t.instances for t in truths]
            self.instances.update([p.instances for p in predictions], objects, image_ids)
        if self.semantic is not None:
            classes = [t.panoptic if t.semantic is None else t.semantic for t in truths]
            self.semantic.update([p.semantic for p in predictions], classes, image_ids)
        self.num_images.update(float(len(truths)))
        self.leave_out(0)  # the sum has been asked for, even if nothing is left out

    def leave_out(self, samples: int) -> None:
        """Count samples that cannot be scored."""
        self.left_out.update(float(samples))

    def compute(self) -> EvaluationResult:
        """The result over everything seen since the last reset, on all ranks."""
        return EvaluationResult(
            panoptic=None if self.panoptic is None else self.panoptic.compute(),
            instances=None if self.instances is None else self.instances.compute(),
            semantic=None if self.semantic is None else self.semantic.compute(),
            names=self.names,
            isthing=self.isthing,
            num_images=int(self.num_images.compute()),
            seen=self.seen,
            left_out=int(self.left_out.compute()),
        )

    def states(self) -> dict[str, dict[str, Any]]:
        """Everything counted so far on this rank, in main memory: integers, tensors and lists of them."""
        return {
            name: {state: _on_cpu(getattr(metric, state)) for state in metric._defaults}  # type: ignore[union-attr]
            for name, metric in self.named_children()
        }

    def add_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Count in what another metric of the same classes has counted, see :meth:`states`."""
        for name, values in states.items():
            metric = getattr(self, name)
            for state, value in values.items():
                own = getattr(metric, state)
                moved = (
                    [v.to(metric.device) for v in value]
                    if isinstance(value, list)
                    else value.to(metric.device)
                )
                setattr(metric, state, own + moved)
            metric._update_count += 1
            metric._computed = None

    def reset(self) -> None:
        """Forget everything."""
        for metric in self.children():
            metric.reset()  # type: ignore[operator]


def _on_cpu(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [item.cpu() for item in value] if isinstance(value, list) else value.cpu()
