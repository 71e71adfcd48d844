"""All metrics of a segmentation benchmark together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import harmonic_mean
from typing import Any

import torch
from torch import Tensor, distributed

from odise_pl.metrics.mask_ap import MaskAPResult, image_objects, mask_ap
from odise_pl.metrics.mean_iou import MeanIoUResult, count_class_pixels, mean_iou
from odise_pl.metrics.panoptic_quality import PanopticQualityResult, count_matches, panoptic_quality
from odise_pl.structures import Prediction, Truth
from odise_pl.vocabulary import MEASURES

GROUPS = ("base", "novel", "harmonic")


@dataclass(frozen=True)
class EvaluationResult:
    """What was measured on one data set.

    Attributes:
        panoptic: panoptic quality; None if it was not measured.
        instances: average precision of object masks; None if it was not measured.
        semantic: mean IoU of class maps; None if it was not measured.
        names: name of each class.
        isthing: per class, whether it is a thing.
        image_ids: of the scored images.
        seen: per class, whether the model was trained on a class of that name; None if unknown.
        skipped: number of samples that are damaged or without labels.
    """

    panoptic: PanopticQualityResult | None
    instances: MaskAPResult | None
    semantic: MeanIoUResult | None
    names: tuple[str, ...]
    isthing: tuple[bool, ...]
    image_ids: frozenset[int]
    seen: tuple[bool, ...] | None = None
    skipped: int = 0

    @property
    def num_images(self) -> int:
        """Number of scored images."""
        return len(self.image_ids)

    def scalars(self) -> dict[str, float]:
        """The measured headline numbers as fractions, by their names in logs.

        The means of :meth:`groups` have the suffixes ``_base``, ``_novel`` and ``_harmonic``.
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
        """``pq``, ``map`` and ``miou`` of base classes (seen in training) and novel classes.

        The third group is the harmonic mean of both, 2 S U / (S + U); of ``miou`` it is known as hIoU.
        Empty if all classes were seen, or none, or if that is unknown.
        """
        if self.seen is None or all(self.seen) or not any(self.seen):
            return {}
        seen = torch.tensor(self.seen)
        base, novel = self._means(seen), self._means(~seen)
        both = {name: harmonic_mean((base[name], novel[name])) for name in base if name in novel}
        return dict(zip(GROUPS, (base, novel, both), strict=True))

    def _means(self, chosen: Tensor) -> dict[str, float]:
        columns = {
            "pq": None if self.panoptic is None else self.panoptic.pq,
            "map": None if self.instances is None else self.instances.per_class,
            "miou": None if self.semantic is None else self.semantic.per_class,
        }
        values = {name: v[chosen & ~v.isnan()] for name, v in columns.items() if v is not None}
        return {name: float(v.mean()) for name, v in values.items() if len(v)}


class SegmentationMetrics:
    """Panoptic quality, mask AP and mean IoU of one data set, or some of them.

    The counts are on the CPU, and their sum does not depend on the order of the images: the result is exactly
    the same however images are split over ranks and runs.

    Args:
        isthing: per class, whether it is a thing.
        names: name of each class.
        seen: see :class:`EvaluationResult`.
        measures: what is measured, of :data:`MEASURES`.
    """

    def __init__(
        self,
        isthing: Sequence[bool],
        names: Sequence[str],
        seen: Sequence[bool] | None = None,
        measures: Sequence[str] = MEASURES,
    ) -> None:
        self.isthing, self.names = tuple(bool(flag) for flag in isthing), tuple(names)
        self.seen = None if seen is None else tuple(seen)
        self.measures = tuple(measures)
        self.reset()

    def reset(self) -> None:
        """Remove all counts."""
        zeros = partial(torch.zeros, dtype=torch.int64)
        self._counts: dict[str, Any] = {
            "image_ids": [],
            "skipped": 0,
            "panoptic": zeros(4, len(self.isthing)),
            "objects": [],
            "pixels": zeros(3, len(self.isthing)),
        }

    def empty(self) -> SegmentationMetrics:
        """Metrics of the same classes without counts."""
        return SegmentationMetrics(self.isthing, self.names, self.seen, self.measures)

    def update(
        self, predictions: Sequence[Prediction], truths: Sequence[Truth], image_ids: Sequence[int]
    ) -> None:
        """Score images against truth of the same size.

        Raises:
            ValueError: lengths differ, or from :func:`count_matches`, :func:`image_objects` or
                :func:`count_class_pixels`.
        """
        for image in zip(predictions, truths, image_ids, strict=True):
            self.add(self._count(*image))

    def _count(self, prediction: Prediction, truth: Truth, image_id: int) -> dict[str, Any]:
        """The :meth:`state` of one image."""
        counts: dict[str, Any] = {"image_ids": [int(image_id)]}
        try:
            if "panoptic" in self.measures:
                counts["panoptic"] = count_matches(prediction.panoptic, truth.panoptic, len(self.isthing))
            if "instances" in self.measures:
                objects = truth.panoptic if truth.instances is None else truth.instances
                counts["objects"] = [image_objects(prediction.instances, objects, image_id, self.isthing)]
            if "semantic" in self.measures:
                classes = truth.panoptic if truth.semantic is None else truth.semantic
                counts["pixels"] = count_class_pixels(prediction.semantic, classes, len(self.isthing))
        except ValueError as error:
            raise ValueError(f"image {image_id}: {error}") from error
        return counts

    def skip(self, samples: int) -> None:
        """Count samples that cannot be scored."""
        self._counts["skipped"] += samples

    def state(self) -> dict[str, Any]:
        """The counts of this rank as JSON values."""
        return {name: v.tolist() if isinstance(v, Tensor) else v for name, v in self._counts.items()}

    def add(self, state: Mapping[str, Any]) -> None:
        """Add the :meth:`state` of other metrics of the same classes."""
        for name, value in state.items():
            is_tensor = isinstance(self._counts[name], Tensor)
            self._counts[name] += torch.as_tensor(value) if is_tensor else value

    def compute(self) -> EvaluationResult:
        """The result over all ranks, each of which must call this.

        Raises:
            ValueError: an image was scored more than once.
        """
        whole = self.empty()
        for state in _gather(self.state()):
            whole.add(state)
        return whole._result()

    def _result(self) -> EvaluationResult:
        counts, measured = self._counts, self.measures
        repeated = [image_id for image_id, count in Counter(counts["image_ids"]).items() if count > 1]
        if repeated:
            raise ValueError(
                f"image {min(repeated)} was scored more than once: image ids must be unique in a data set"
            )
        return EvaluationResult(
            panoptic=panoptic_quality(counts["panoptic"], self.isthing) if "panoptic" in measured else None,
            instances=mask_ap(counts["objects"], self.isthing) if "instances" in measured else None,
            semantic=mean_iou(counts["pixels"]) if "semantic" in measured else None,
            names=self.names,
            isthing=self.isthing,
            image_ids=frozenset(counts["image_ids"]),
            seen=self.seen,
            skipped=counts["skipped"],
        )


def _gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [state]
    states: list[dict[str, Any]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(states, state)
    return states
