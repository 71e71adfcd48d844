"""Average precision of object masks as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray
from torch import Tensor

from odise_pl.metrics.overlap import check_same_size
from odise_pl.structures import Instances, PanopticSegmentation, TrueInstances

MAX_DETECTIONS = 100  # per image and class, as in COCO
# The objects of one image as JSON values, see :func:`image_objects`.
ImageObjects = dict[str, Any]


@dataclass(frozen=True)
class MaskAPResult:
    """Average precision of masks, each in 0..1; 0 if there is no true object.

    Attributes:
        ap: mean over IoU thresholds 0.50:0.05:0.95 and over the classes in the truth.
        ap50: at IoU threshold 0.50.
        ap75: at IoU threshold 0.75.
        ap_small: of objects below 32**2 pixels.
        ap_medium: of objects from 32**2 to 96**2 pixels.
        ap_large: of objects above 96**2 pixels.
        per_class: ``ap`` of each class, float64 [K]; NaN for stuff and for classes not in the truth.
        classes: number of averaged classes.
        num_annotated: number of images with annotated objects; the others were scored against panoptic maps.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_class: Tensor
    classes: int
    num_annotated: int = 0


def image_objects(
    found: Instances,
    truth: PanopticSegmentation | TrueInstances,
    image_id: int,
    isthing: Sequence[bool],
) -> ImageObjects:
    """The objects of one image, with run-length encoded masks, for :func:`mask_ap`.

    Args:
        found: scored instances.
        truth: annotated objects, which may overlap, or a panoptic map, whose things are the objects.
            Detections on crowds are ignored.
        image_id: unique in the data set.
        isthing: per class, whether it is a thing (scored) or stuff.

    Returns:
        ``id``, ``size`` [height, width], ``annotated``; and the lists ``truths`` of
        [class, code, crowd, area] and ``detections`` of [class, code, score].

    Raises:
        ValueError: sizes differ, a class is not a thing, or a score is non-finite.
    """
    objects = _objects(truth)
    check_same_size(found.masks, objects.masks)
    if not found.scores.isfinite().all():
        raise ValueError("the instances have a non-finite score")
    things = set(np.flatnonzero(isthing).tolist())
    if wrong := {*found.labels.tolist(), *objects.labels.tolist()} - things:
        raise ValueError(f"the instances have class {min(wrong)}, which is not a thing")
    labels, codes = objects.labels.tolist(), _encode_masks(objects.masks)
    facts = zip(labels, codes, objects.crowd.int().tolist(), objects.areas.tolist(), strict=True)
    scores = found.scores.double().tolist()
    detections = zip(found.labels.tolist(), _encode_masks(found.masks), scores, strict=True)
    return {
        "id": int(image_id),
        "size": list(objects.masks.shape[-2:]),
        "annotated": isinstance(truth, TrueInstances),
        "truths": [list(row) for row in facts],
        "detections": [list(row) for row in detections],
    }


def mask_ap(images: Sequence[ImageObjects], isthing: Sequence[bool]) -> MaskAPResult:
    """Average precision over images in any order.

    Args:
        images: from :func:`image_objects`.
        isthing: per class, whether it is a thing.
    """
    things = np.flatnonzero(isthing)
    precision = np.full((10, 1, len(things), 4), -1.0)
    if len(images) and len(things):
        precision = _coco_precision(images, things.tolist())
    # classes not in the truth have no entries
    occurs = precision[0, 0, :, 0] > -1
    per_class = np.full(len(isthing), np.nan)
    per_class[things[occurs]] = precision[:, :, occurs, 0].mean(axis=(0, 1))
    return MaskAPResult(
        ap=_mean(precision[..., 0]),
        ap50=_mean(precision[0, ..., 0]),
        ap75=_mean(precision[5, ..., 0]),
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        per_class=torch.from_numpy(per_class),
        classes=int(occurs.sum()),
        num_annotated=sum(image["annotated"] for image in images),
    )


def _encode_masks(masks: Tensor) -> list[str]:
    """COCO's compressed run-length codes of the transposed masks, bool [M, H, W] on any device.

    COCO's runs follow columns. Those of the transposed masks follow rows, the memory layout of a tensor.
    Areas and overlaps, all that AP needs, are the same.
    """
    if len(masks) == 0:
        return []
    rows = masks.detach().cpu().contiguous().view(torch.uint8).numpy()
    return [code["counts"].decode() for code in mask_api.encode(rows.transpose(2, 1, 0))]


def _objects(truth: PanopticSegmentation | TrueInstances) -> TrueInstances:
    """Annotated objects, or the things of a panoptic map."""
    if isinstance(truth, TrueInstances):
        return truth
    things, device = [segment for segment in truth.segments if segment.isthing], truth.ids.device
    ids = torch.tensor([s.id for s in things], dtype=torch.int64, device=device)
    masks = truth.ids.long() == ids[:, None, None]
    return TrueInstances(
        labels=torch.tensor([s.category for s in things], dtype=torch.int64, device=device),
        masks=masks,
        crowd=torch.tensor([s.iscrowd for s in things], dtype=torch.bool, device=device),
        areas=masks.flatten(1).sum(1).double(),
    )


def _coco_precision(images: Sequence[ImageObjects], things: Sequence[int]) -> NDArray[np.float64]:
    """COCO's precision table [IoU thresholds, recalls, things, areas]; -1 where there is no truth."""
    truths = [
        {**_annotation(image, label, code), "iscrowd": crowd, "area": area}
        for image in images
        for label, code, crowd, area in image["truths"]
    ]
    detections = [
        {**_annotation(image, label, code), "score": score}
        for image in images
        for label, code, score in image["detections"]
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i["id"], "height": i["size"][1], "width": i["size"][0]} for i in images],
        "categories": [{"id": label, "name": str(label)} for label in things],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(truths, start=1)],
    }
    truth.createIndex()
    evaluation = COCOeval_faster(truth, truth.loadRes(detections), "segm")
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def _annotation(image: ImageObjects, label: int, code: str) -> dict[str, Any]:
    size = image["size"][::-1]  # transposed, see _encode_masks
    return {"image_id": image["id"], "category_id": label, "segmentation": {"size": size, "counts": code}}


def _mean(precision: NDArray[np.float64]) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else 0.0
