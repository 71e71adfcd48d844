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

NO_CLASS = -1


@dataclass(frozen=True)
class MeanIoUResult:
    """Semantic quality, each number in 0..1; 0 when the truth has no labelled pixel.

    Attributes:
        miou: mean IoU over the classes that the truth has.
        miou_published: the same sum over the classes that truth or prediction has. So Detectron2's evaluator
            counted at the time of the paper, whose numbers are compared with this one.
        frequency_weighted_iou: their IoUs weighted by their share of the true pixels.
        pixel_accuracy: share of the true pixels whose class is right.
        per_class: IoU of each class, float64 [K] in main memory; NaN for classes that the truth lacks.
        num_classes: number of classes that the truth has.
        num_only_predicted: number of classes that the prediction alone has.
    """

    miou: float
    miou_published: float
    frequency_weighted_iou: float
    pixel_accuracy: float
    per_class: Tensor
    num_classes: int
    num_only_predicted: int


class MeanIoU(ResultMetric):
    """Mean IoU over images and ranks, from the margins and the diagonal of one confusion matrix.

    The true class of a pixel is that of its segment. Void pixels (id 0) are left out altogether. Crowd
    segments count with their class, as in the semantic maps that COCO makes of panoptic ones. A class enters
    the mean when the truth has pixels of it, the usual definition of semantic evaluation: one that is only
    predicted lowers the IoU of the classes it was mistaken for and has none itself. Published numbers
    count it as 0, which matters where the validation set lacks many of the names, as PASCAL-Context's of 459.

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
        truths: Sequence[PanopticSegmentation | Tensor],
        image_ids: Sequence[int] | None = None,
    ) -> None:
        """Add images: class maps [H, W] and their truth, panoptic or a class map, on the same device.

        In a class map -1 is no class: in the truth a pixel that is left out, in the prediction a wrong one.

        Raises:
            ValueError: different counts or sizes, a class that is not in -1..K-1, or a pixel of the truth
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
        only_predicted = int(((union > 0) & ~occurs).sum())
        per_class = torch.full((self.num_classes,), float("nan"), dtype=torch.float64)
        per_class[occurs] = iou
        return MeanIoUResult(
            miou=float(iou.mean()) if len(iou) else 0.0,
            miou_published=float(iou.sum()) / max(len(iou) + only_predicted, 1),
            frequency_weighted_iou=float((iou * true_pixels[occurs]).sum()) / max(total, 1.0),
            pixel_accuracy=float(intersection.sum()) / max(total, 1.0),
            per_class=per_class,
            num_classes=len(iou),
            num_only_predicted=only_predicted,
        )


def class_confusion(
    prediction: Tensor, truth: PanopticSegmentation | Tensor, num_classes: int, image: str = "image"
) -> tuple[IntArray, IntArray, IntArray]:
    """Diagonal, row sums (truth) and column sums (prediction) of one image's confusion matrix, [K] each.

    The matrix itself is never built: a truth has few segments, so the table of segments by classes is small
    for any number of classes. Raises as :meth:`MeanIoU.update` does.
    """
    ids, values, classes = _coded(truth)
    check_label_map(prediction, f"the prediction of {image}")
    check_label_map(ids, f"the truth of {image}")
    check_same_size(prediction, ids, image)
    known = (*range(num_classes), NO_CLASS)
    overlaps = count_overlaps(ids, prediction, values, known)
    if overlaps[-1].any():
        unlisted = unlisted_value(ids, values)
        raise ValueError(f"the truth of {image}: the map has pixels of the unlisted segment id {unlisted}")
    wrong = {
        "prediction": unlisted_value(prediction, known) if overlaps[:, -1].any() else None,
        "truth": next((label for label in classes if not 0 <= label < num_classes), None),
    }
    for where, label in wrong.items():
        if label is not None:
            valid = f"0..{num_classes - 1}"
            raise ValueError(f"the {where} of {image}: the map has pixels of class {label}, not in {valid}")
    return _margins(overlaps[1:-1, :-1], classes, num_classes)


def _coded(truth: PanopticSegmentation | Tensor) -> tuple[Tensor, list[int], list[int]]:
    """A truth as a map, its values with that of void first, and the classes of the other values."""
    if isinstance(truth, PanopticSegmentation):
        segments = truth.segments
        return truth.ids, [0, *(s.id for s in segments)], [s.category for s in segments]
    classes = [value for value in truth.unique().tolist() if value != NO_CLASS]
    return truth, [NO_CLASS, *classes], classes


def _margins(
    overlaps: IntArray, categories: list[int], num_classes: int
) -> tuple[IntArray, IntArray, IntArray]:
    rows = np.array(categories, dtype=np.int64)
    diagonal, true_pixels = np.zeros((2, num_classes), dtype=np.int64)
    np.add.at(diagonal, rows, overlaps[np.arange(len(rows)), rows])
    np.add.at(true_pixels, rows, overlaps.sum(axis=1))
    return diagonal, true_pixels, overlaps[:, :num_classes].sum(axis=0)
