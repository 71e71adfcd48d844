"""Mean intersection over union of class maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odise_pl.metrics.overlap import count_overlaps
from odise_pl.structures import PanopticSegmentation

NO_CLASS = -1


@dataclass(frozen=True)
class MeanIoUResult:
    """Semantic quality, each number in 0..1; 0 if the truth has no labelled pixel.

    Attributes:
        miou: mean IoU over the classes in the truth.
        miou_published: mean IoU over the classes in truth or prediction, for comparison with the paper:
            Detectron2's evaluator counted them so at the time.
        frequency_weighted_iou: IoUs weighted by the classes' shares of the true pixels.
        pixel_accuracy: share of the true pixels whose class is right.
        per_class: IoU of each class, float64 [K]; NaN for classes not in the truth.
        classes: number of classes in the truth.
        only_predicted: number of classes only in the prediction.
    """

    miou: float
    miou_published: float
    frequency_weighted_iou: float
    pixel_accuracy: float
    per_class: Tensor
    classes: int
    only_predicted: int


def count_class_pixels(prediction: Tensor, truth: PanopticSegmentation | Tensor, num_classes: int) -> Tensor:
    """The diagonal and the margins of the confusion matrix of one image, which determine its mean IoU.

    The true class of a pixel is that of its segment. Void pixels (id 0) are ignored. Crowd segments count, as
    in the semantic maps that COCO derives from panoptic ones.

    Args:
        prediction: class map, integer [H, W] on any device; -1 is no class, which is always wrong.
        truth: a panoptic map, or a class map in which -1 is void.
        num_classes: K.

    Returns:
        int64 [3, K] on the CPU: correct, true and predicted pixels of each class.

    Raises:
        ValueError: sizes differ, a class is not in -1..K-1, or a true segment id is not listed.
    """
    # torchmetrics' confusion matrix allocates K^2 numbers per pixel with deterministic algorithms
    known = [NO_CLASS, *range(num_classes)]
    if isinstance(truth, PanopticSegmentation):
        labels, values = truth.ids, [0, *(segment.id for segment in truth.segments)]
        classes = [segment.category for segment in truth.segments]
    else:
        labels, values, classes = truth, known, known[1:]
    confusion = np.zeros((num_classes, 1 + num_classes), dtype=np.int64)  # the first column: no class
    np.add.at(
        confusion, np.array(classes, dtype=np.int64), count_overlaps(prediction, labels, known, values)[1:]
    )
    margins = (confusion[:, 1:].diagonal(), confusion.sum(axis=1), confusion[:, 1:].sum(axis=0))
    return torch.from_numpy(np.stack(margins))


def mean_iou(pixels: Tensor) -> MeanIoUResult:
    """The mean IoU of images, over the classes in their truth.

    A class that is only predicted has no IoU and lowers those of the classes it was mistaken for. Published
    numbers count it as 0. That matters if the validation set lacks many classes, as PASCAL-Context 459 does.

    Args:
        pixels: int64 [3, K], the sum of the images' :func:`count_class_pixels`.
    """
    hits, true_pixels, predicted_pixels = pixels.double()
    occurs, total = true_pixels > 0, float(true_pixels.sum())
    union = true_pixels + predicted_pixels - hits
    iou = hits[occurs] / union[occurs]
    only_predicted = int(((union > 0) & ~occurs).sum())
    per_class = torch.full_like(hits, float("nan"))
    per_class[occurs] = iou
    return MeanIoUResult(
        miou=float(iou.mean()) if len(iou) else 0.0,
        miou_published=float(iou.sum()) / max(len(iou) + only_predicted, 1),
        frequency_weighted_iou=float((iou * true_pixels[occurs]).sum()) / max(total, 1.0),
        pixel_accuracy=float(hits.sum()) / max(total, 1.0),
        per_class=per_class,
        classes=len(iou),
        only_predicted=only_predicted,
    )
