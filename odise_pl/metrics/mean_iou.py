"""Mean intersection over union of class maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odise_pl.metrics.images import check_label_map, check_same_size
from odise_pl.metrics.overlap import count_overlaps, unlisted_value
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
        per_class: IoU of each class, float64 [K]; NaN for classes that the truth lacks.
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


def count_class_pixels(
    prediction: Tensor, truth: PanopticSegmentation | Tensor, num_classes: int, image: str = "image"
) -> Tensor:
    """What decides the mean IoU of one image: diagonal and margins of its confusion matrix.

    The true class of a pixel is that of its segment. Void pixels (id 0) do not count at all. Crowd segments
    count with their class, as in the semantic maps that COCO makes of panoptic ones.

    Args:
        prediction: class map, integer [H, W]; -1 is no class, which is wrong everywhere.
        truth: panoptic, or a class map in which -1 is void; on the same device.
        num_classes: K.
        image: how messages name the image.

    Returns:
        int64 [3, K] in main memory: right, true and predicted pixels of each class.

    Raises:
        ValueError: different sizes, a class that is not in -1..K-1, or a pixel of the truth whose id its
            segments do not list.
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
    confusion = np.zeros((num_classes, num_classes + 1), dtype=np.int64)  # the last column is no class
    np.add.at(confusion, np.array(classes, dtype=np.int64), overlaps[1:-1, :-1])
    margins = (confusion.diagonal(), confusion.sum(axis=1), confusion[:, :-1].sum(axis=0))
    return torch.from_numpy(np.stack(margins))


def _coded(truth: PanopticSegmentation | Tensor) -> tuple[Tensor, list[int], list[int]]:
    """A truth as a map, its values with that of void first, and the classes of the other values."""
    if isinstance(truth, PanopticSegmentation):
        segments = truth.segments
        return truth.ids, [0, *(s.id for s in segments)], [s.category for s in segments]
    classes = [value for value in truth.unique().tolist() if value != NO_CLASS]
    return truth, [NO_CLASS, *classes], classes


def mean_iou(pixels: Tensor) -> MeanIoUResult:
    """The mean IoU of the images whose :func:`count_class_pixels` were added.

    A class enters the mean when the truth has pixels of it, the usual definition of semantic evaluation: one
    that is only predicted lowers the IoU of the classes it was mistaken for and has none itself. Published
    numbers count it as 0, which matters where the validation set lacks many of the names, as PASCAL-Context's
    of 459.

    Args:
        pixels: int64 [3, K].
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
        num_classes=len(iou),
        num_only_predicted=only_predicted,
    )
