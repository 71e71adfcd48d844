"""All metrics of a segmentation benchmark together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from odise_pl.metrics.mask_ap import ImageObjects, MaskAPResult, image_objects, mask_ap
from odise_pl.metrics.mean_iou import MeanIoUResult, count_class_pixels, mean_iou
from odise_pl.metrics.panoptic_matching import PanopticStats, match
from odise_pl.metrics.panoptic_quality import PanopticQuality, PanopticQualityResult
from odise_pl.structures import Prediction, Truth
from odise_pl.vocabulary import MEASURES

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
        image_ids: of the scored images.
        seen: per class, whether the model was trained on a class of that name; None if unknown.
        skipped: number of skipped samples, which are damaged or without labels.
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

        The means of :meth:`groups` have the suffixes ``_base`` and ``_novel``.
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

        Empty if all classes were seen, or none, or if that is unknown.
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
        self._image_ids: list[int] = []
        self._skipped = 0
        self._panoptic = PanopticQuality(self.isthing, sync_on_compute=False)
        self._objects: list[ImageObjects] = []
        self._pixels = torch.zeros(3, len(self.isthing), dtype=torch.int64)

    def update(
        self, predictions: Sequence[Prediction], truths: Sequence[Truth], image_ids: Sequence[int]
    ) -> None:
        """Score images against truth of the same size; after an error none of them is counted.

        Raises:
            ValueError: lengths differ, or from :func:`match`, :func:`image_objects` or
                :func:`count_class_pixels`.
        """
        images = list(zip(predictions, truths, image_ids, strict=True))
        panoptic = [self._match(*image) for image in images] if "panoptic" in self.measures else []
        objects = [self._list_objects(*image) for image in images] if "instances" in self.measures else []
        pixels = [self._count_pixels(*image) for image in images] if "semantic" in self.measures else []
        self._panoptic.add(sum(panoptic, PanopticStats.zeros(len(self.isthing))))
        self._objects += objects
        self._pixels = sum(pixels, self._pixels)
        self._image_ids += [int(image_id) for image_id in image_ids]

    def _match(self, prediction: Prediction, truth: Truth, image_id: int) -> PanopticStats:
        return match(prediction.panoptic, truth.panoptic, len(self.isthing), f"image {image_id}")

    def _list_objects(self, prediction: Prediction, truth: Truth, image_id: int) -> ImageObjects:
        objects = truth.panoptic if truth.instances is None else truth.instances
        return image_objects(prediction.instances, objects, image_id, self.isthing, f"image {image_id}")

    def _count_pixels(self, prediction: Prediction, truth: Truth, image_id: int) -> Tensor:
        classes = truth.panoptic if truth.semantic is None else truth.semantic
        return count_class_pixels(prediction.semantic, classes, len(self.isthing), f"image {image_id}")

    def skip(self, samples: int) -> None:
        """Count samples that cannot be scored."""
        self._skipped += samples

    def state(self) -> dict[str, Any]:
        """The counts of this rank as JSON values."""
        return {
            "image_ids": list(self._image_ids),
            "skipped": self._skipped,
            "panoptic": {name: counts.tolist() for name, counts in vars(self._panoptic.stats).items()},
            "objects": list(self._objects),
            "pixels": self._pixels.tolist(),
        }

    def add(self, state: Mapping[str, Any]) -> None:
        """Add the :meth:`state` of other metrics of the same classes."""
        self._image_ids += state["image_ids"]
        self._skipped += state["skipped"]
        counts = {name: torch.tensor(values) for name, values in state["panoptic"].items()}
        self._panoptic.add(PanopticStats(**counts))
        self._objects += state["objects"]
        self._pixels = self._pixels + torch.tensor(state["pixels"])

    def compute(self) -> EvaluationResult:
        """The result over all ranks, each of which must call this.

        Raises:
            ValueError: an image was scored more than once.
        """
        whole = SegmentationMetrics(self.isthing, self.names, self.seen, self.measures)
        for state in _gather(self.state()):
            whole.add(state)
        return whole._result()

    def _result(self) -> EvaluationResult:
        repeated = [image_id for image_id, count in Counter(self._image_ids).items() if count > 1]
        if repeated:
            raise ValueError(
                f"image {min(repeated)} was scored more than once: image ids must be unique in a data set"
            )
        measured = self.measures
        return EvaluationResult(
            panoptic=self._panoptic.result if "panoptic" in measured else None,
            instances=mask_ap(self._objects, self.isthing) if "instances" in measured else None,
            semantic=mean_iou(self._pixels) if "semantic" in measured else None,
            names=self.names,
            isthing=self.isthing,
            image_ids=frozenset(self._image_ids),
            seen=self.seen,
            skipped=self._skipped,
        )


def _gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [state]
    states: list[dict[str, Any]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(states, state)
    return states
