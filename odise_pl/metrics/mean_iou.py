"""Mean intersection over union of semantic maps against panoptic truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odise_pl.metrics.images import check_label_map, check_same_size, image_names
from odise_pl.metrics.overlap import IntArray, count_overlaps, unlisted_value
from odise_pl.metrics.result_metric import ResultMetric
from odise_pl.structures import PanopticSegmentation


@dataclass(frozen=True)
class MeanIoUResult:
    """Semantic quality, each number in 0..1; 0 when the truth has no labelled pixel.

    Attributes:
        miou: mean IoU over the classes that the truth has.
        frequency_weighted_iou: their IoUs weighted by their share of the true pixels.
        pixel_accuracy: share of the true pixels whose class is right.
        per_class: IoU of each class, float64 [K] in main memory; NaN for classes that the truth lacks.
        num_classes: number of classes that were averaged.
    """

    miou: float
    frequency_weighted_iou: float
    pixel_accuracy: float
    per_class: Tensor
    num_classes: int


class MeanIoU(ResultMetric):
    """Mean IoU over images and ranks, from the margins and the diagonal of one confusion matrix.

    The true class of a pixel is that of its segment. Void pixels (id 0) are left out altogether. Crowd
    segments count with their class, as in the semantic maps that COCO makes of panoptic ones. A class enters
    the mean when the truth has pixels of it, the usual definition of semantic evaluation: one that is only
    predicted lowers the IoU of the classes it was mistaken for and has none itself.

    Args:
        num_classes: K.

    Raises:
        ValueError: ``num_classes`` below 1.
    """

    intersection: Tensor
    true_pixels: Tensor
    predicted_pixels: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: mean IoU needs at least one class")
        self.num_classes = num_classes
        for name in ("intersection", "true_pixels", "predicted_pixels"):
            self.add_state(name, default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        predictions: Sequence[Tensor],
        truths: Sequence[PanopticSegmentation],
        image_ids: Sequence[int] | None = None,
    ) -> None:
        """Add images: class maps int64 [H, W] and their truth on the same device.

        Raises:
            ValueError: different counts or sizes, a class that is not in 0..K-1, or a pixel of the truth
                whose id its segments do not list.
        """
        names = image_names(len(predictions), len(truths), image_ids)
        for prediction, truth, name in zip(predictions, truths, names, strict=True):
            confusion = class_confusion(prediction, truth, self.num_classes, name)
            diagonal, rows, columns = confusion
            self.intersection += torch.from_numpy(diagonal).to(self.device)
            self.true_pixels += torch.from_numpy(rows).to(self.device)
            self.predicted_pixels += torch.from_numpy(columns).to(self.device)

    def compute(self) -> MeanIoUResult:
        """The means over everything seen so far on all ranks."""
        intersection, true_pixels = self.intersection.cpu().double(), self.true_pixels.cpu().double()
        occurs, total = true_pixels > 0, float(true_pixels.sum())
        union = true_pixels + self.predicted_pixels.cpu() - intersection
        iou = intersection[occurs] / union[occurs]
        per_class = torch.full((self.num_classes,), float("nan"), dtype=torch.float64)
        per_class[occurs] = iou
        return MeanIoUResult(
            miou=float(iou.mean()) if len(iou) else 0.0,
            frequency_weighted_iou=float((iou * true_pixels[occurs]).sum()) / max(total, 1.0),
            pixel_accuracy=float(intersection.sum()) / max(total, 1.0),
            per_class=per_class,
            num_classes=len(iou),
        )


def class_confusion(
    prediction: Tensor, truth: PanopticSegmentation, num_classes: int, image: str = "image"
) -> tuple[IntArray, IntArray, IntArray]:
    """Diagonal, row sums (truth) and column sums (prediction) of one image's confusion matrix, [K] each.

    The matrix itself is never built: a truth has few segments, so the table of segments by classes is small
    for any number of classes. Raises as :meth:`MeanIoU.update` does.
    """
    check_label_map(prediction, f"the prediction of {image}")
    check_label_map(truth.ids, f"the truth of {image}")
    check_same_size(prediction, truth.ids, image)
    ids = [0, *(segment.id for segment in truth.segments)]
    overlaps = count_overlaps(truth.ids, prediction, ids, range(num_classes))
    if overlaps[-1].any():
        unlisted = unlisted_value(truth.ids, ids)
        raise ValueError(f"the truth of {image}: the map has pixels of the unlisted segment id {unlisted}")
    if overlaps[:, -1].any():
        label = unlisted_value(prediction, range(num_classes))
        classes = f"0..{num_classes - 1}"
        raise ValueError(f"the prediction of {image}: the map has pixels of class {label}, not in {classes}")
    return _margins(overlaps[1:-1, :-1], [segment.category for segment in truth.segments], num_classes)


def _margins(
    overlaps: IntArray, categories: list[int], num_classes: int
) -> tuple[IntArray, IntArray, IntArray]:
    rows = np.array(categories, dtype=np.int64)
    diagonal, true_pixels = np.zeros((2, num_classes), dtype=np.int64)
    np.add.at(diagonal, rows, overlaps[np.arange(len(rows)), rows])
    np.add.at(true_pixels, rows, overlaps.sum(axis=1))
    return diagonal, true_pixels, overlaps.sum(axis=0)
