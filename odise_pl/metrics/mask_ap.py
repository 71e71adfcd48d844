"""Average precision of object masks as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from odise_pl.metrics.images import check_label_map, check_same_size, image_names
from odise_pl.metrics.result_metric import ResultMetric
from odise_pl.structures import Instances, PanopticSegmentation, TrueInstances

MAX_DETECTIONS = 100  # per image and class, as COCO has it
_COLUMNS = {"images": 4, "detections": 4, "truths": 5}  # of the tables below
_BYTES = ("detection_rles", "truth_rles")


@dataclass(frozen=True)
class MaskAPResult:
    """Average precision of masks, each in 0..1; 0 where no class has a true object.

    Attributes:
        ap: mean over IoU thresholds 0.50:0.05:0.95 and over the classes that the truth has.
        ap50: at IoU threshold 0.50.
        ap75: at IoU threshold 0.75.
        ap_small: of objects below 32**2 pixels.
        ap_medium: of objects from 32**2 to 96**2 pixels.
        ap_large: of objects above 96**2 pixels.
        per_class: ``ap`` of each class, float64 [K]; NaN for stuff and for classes that the truth lacks.
        num_classes: number of classes that were averaged.
        num_annotated: images whose truth were annotated objects; of the others it was the panoptic map.
        image_ids: of all images.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_class: Tensor
    num_classes: int
    num_annotated: int = 0
    image_ids: tuple[int, ...] = ()


class MaskAP(ResultMetric):
    """Mask AP of scored instances against objects or the things of panoptic maps, over images and ranks.

    The objects of a panoptic map do not overlap, annotated ones may. Crowds are regions that detections may
    overlap freely, as in COCO. Masks are kept run-length encoded until :meth:`compute`, which
    orders them by image, so the result does not depend on how images are split over ranks.

    Args:
        isthing: per class, whether it is a thing (scored) or stuff (left out of the truth).

    Raises:
        ValueError: without classes.
    """

    # Integer tables, one row an item, and the concatenated run-length codes of their masks. A score is kept
    # as the bits of a float64, so that a table has one dtype that every device and collective knows.
    images: list[Tensor]  # image id, height, width, whether its objects were annotated
    detections: list[Tensor]  # image id, class, length of the code, score
    truths: list[Tensor]  # image id, class, length of the code, crowd, area
    detection_rles: list[Tensor]
    truth_rles: list[Tensor]

    def __init__(self, isthing: Sequence[bool]) -> None:
        super().__init__()
        if len(isthing) == 0:
            raise ValueError("isthing is empty: mask AP needs at least one class")
        self.isthing = tuple(bool(flag) for flag in isthing)
        for name in (*_COLUMNS, *_BYTES):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        instances: Sequence[Instances],
        truths: Sequence[PanopticSegmentation | TrueInstances],
        image_ids: Sequence[int],
    ) -> None:
        """Add images.

        Raises:
            ValueError: different counts; masks of another size than the truth, fields of unequal length,
                a class that is not one of the things, or a score that is not finite.
        """
        names = image_names(len(instances), len(truths), image_ids)
        for found, given, image_id, name in zip(instances, truths, image_ids, names, strict=True):
            truth = _objects(given, name)
            self._check(found, truth, name)
            height, width = truth.masks.shape[-2:]
            self._append("images", [[int(image_id), height, width, int(given is truth)]])
            self._add_detections(int(image_id), found)
            self._add_truth(int(image_id), truth)

    def compute(self) -> MaskAPResult:
        """The precision over everything seen so far on all ranks.

        Raises:
            ValueError: an image was added twice.
        """
        images = self._table("images")
        ids, counts = np.unique(images[:, 0], return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"image {ids[counts > 1][0]} was scored more than once: image ids must be unique in a data "
                "set, and a distributed sampler must not repeat images to even out the ranks"
            )
        precision = self._precision(images) if len(images) and any(self.isthing) else None
        summary = _summary(precision, self.isthing)
        return replace(summary, num_annotated=int(images[:, 3].sum()), image_ids=tuple(ids.tolist()))

    def _check(self, found: Instances, truth: TrueInstances, image: str) -> None:
        count = len(found.masks)
        if found.masks.dim() != 3 or found.labels.shape != (count,) or found.scores.shape != (count,):
            shapes = [list(t.shape) for t in (found.labels, found.scores, found.masks)]
            raise ValueError(
                f"the instances of {image}: labels, scores and masks must be [M], [M] and [M, H, W], "
                f"found {', '.join(map(str, shapes))}"
            )
        if found.masks.dtype != torch.bool:
            raise ValueError(f"the instances of {image}: masks must be bool, found {found.masks.dtype}")
        check_same_size(found.masks, truth.masks, image)
        if not found.scores.isfinite().all():
            raise ValueError(f"the instances of {image} have a score that is not finite")
        self._check_classes([*found.labels.tolist(), *truth.labels.tolist()], image)

    def _check_classes(self, classes: list[int], image: str) -> None:
        for label in classes:
            if not 0 <= label < len(self.isthing):
                raise ValueError(
                    f"the instances of {image}: {label} is not one of the {len(self.isthing)} classes"
                )
            if not self.isthing[label]:
                raise ValueError(f"the instances of {image}: class {label} is stuff, which has no instances")

    def _add_detections(self, image_id: int, found: Instances) -> None:
        codes = encode_masks(found.masks)
        bits = found.scores.detach().cpu().double().view(torch.int64).tolist()
        labels = found.labels.tolist()
        rows = zip(labels, codes, bits, strict=True)
        self._append("detections", [[image_id, label, len(code), score] for label, code, score in rows])
        self._append_codes("detection_rles", codes)

    def _add_truth(self, image_id: int, truth: TrueInstances) -> None:
        codes = encode_masks(truth.masks)
        areas = truth.areas.cpu().double().view(torch.int64).tolist()
        rows = zip(truth.labels.tolist(), map(len, codes), truth.crowd.int().tolist(), areas, strict=True)
        self._append("truths", [[image_id, *row] for row in rows])
        self._append_codes("truth_rles", codes)

    def _append(self, name: str, rows: list[list[int]]) -> None:
        if rows:
            getattr(self, name).append(torch.tensor(rows, dtype=torch.int64, device=self.device))

    def _append_codes(self, name: str, codes: list[bytes]) -> None:
        if codes:
            joined = np.frombuffer(b"".join(codes), dtype=np.uint8).copy()
            getattr(self, name).append(torch.from_numpy(joined).to(self.device))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # torchmetrics gathers an empty list as a one-dimensional float tensor, which the tables of the
        # other ranks do not fit.
        for name in (*_COLUMNS, *_BYTES):
            if not getattr(self, name):
                setattr(self, name, [self._empty(name)])
        super()._sync_dist(dist_sync_fn, process_group=process_group)

    def _empty(self, name: str) -> Tensor:
        if name in _BYTES:
            return torch.zeros(0, dtype=torch.uint8, device=self.device)
        return torch.zeros(0, _COLUMNS[name], dtype=torch.int64, device=self.device)

    def _table(self, name: str) -> NDArray[np.int64]:
        return self._joined(name).numpy().reshape(-1, _COLUMNS[name])

    def _joined(self, name: str) -> Tensor:
        """A state as one tensor in main memory: a list before, a tensor after the ranks were gathered."""
        state = getattr(self, name)
        parts = [state] if isinstance(state, Tensor) else [self._empty(name), *state]
        return torch.cat([part.cpu() for part in parts])

    def _precision(self, images: NDArray[np.int64]) -> NDArray[np.float64]:
        """COCO's precision table [IoU thresholds, recalls, things, areas]; -1 where there is no truth."""
        sizes = {int(i): (int(height), int(width)) for i, height, width, _ in images}
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i, "height": width, "width": height} for i, (height, width) in sizes.items()],
            "categories": [{"id": c, "name": str(c)} for c, thing in enumerate(self.isthing) if thing],
            "annotations": self._true_annotations(sizes),
        }
        truth.createIndex()
        evaluation = COCOeval_faster(truth, truth.loadRes(self._result_annotations(sizes)), "segm")
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"][..., -1]

    def _true_annotations(self, sizes: dict[int, tuple[int, int]]) -> list[dict[str, Any]]:
        rows = self._table("truths")
        areas = rows[:, 4].copy().view(np.float64)
        codes = _split(self._joined("truth_rles"), rows[:, 2])
        annotations = [_annotation(row, code, sizes) for row, code in zip(rows, codes, strict=True)]
        for number, (annotation, row) in enumerate(zip(annotations, rows, strict=True), start=1):
            annotation.update(id=number, iscrowd=int(row[3]), area=float(areas[number - 1]))
        return annotations

    def _result_annotations(self, sizes: dict[int, tuple[int, int]]) -> list[dict[str, Any]]:
        rows = self._table("detections")
        codes = _split(self._joined("detection_rles"), rows[:, 2])
        scores = rows[:, 3].copy().view(np.float64)
        return [
            {**_annotation(row, code, sizes), "score": float(score)}
            for row, code, score in zip(rows, codes, scores, strict=True)
        ]


def encode_masks(masks: Tensor) -> list[bytes]:
    """Run-length code of each of the masks, bool [M, H, W] on any device, in COCO's compressed form.

    COCO runs down the columns. These codes run along the rows, which is how a tensor lies in memory: they are
    COCO's codes of the transposed masks. Areas and overlaps, all that AP needs, are the same.
    """
    if len(masks) == 0:
        return []
    rows = masks.detach().cpu().contiguous().view(torch.uint8).numpy()
    return [code["counts"] for code in mask_api.encode(rows.transpose(2, 1, 0))]


def _objects(truth: PanopticSegmentation | TrueInstances, image: str) -> TrueInstances:
    """Annotated objects, or the things of a panoptic map."""
    if isinstance(truth, TrueInstances):
        return truth
    check_label_map(truth.ids, f"the truth of {image}")
    things, device = [segment for segment in truth.segments if segment.isthing], truth.ids.device
    masks = (
        truth.ids.long()
        == torch.tensor([s.id for s in things], dtype=torch.int64, device=device)[:, None, None]
    )
    return TrueInstances(
        labels=torch.tensor([s.category for s in things], dtype=torch.int64, device=device),
        masks=masks,
        crowd=torch.tensor([s.iscrowd for s in things], dtype=torch.bool, device=device),
        areas=masks.flatten(1).sum(1).double(),
    )


def _split(codes: Tensor, lengths: NDArray[np.int64]) -> list[bytes]:
    data, ends = codes.numpy().tobytes(), np.cumsum(lengths)
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _annotation(row: NDArray[np.int64], code: bytes, sizes: dict[int, tuple[int, int]]) -> dict[str, Any]:
    image_id, category = int(row[0]), int(row[1])
    height, width = sizes[image_id]
    rle = {"size": [width, height], "counts": code}  # transposed, see encode_masks
    return {"image_id": image_id, "category_id": category, "segmentation": rle}


def _summary(precision: NDArray[np.float64] | None, isthing: Sequence[bool]) -> MaskAPResult:
    things = np.flatnonzero(isthing)
    if precision is None:
        precision = np.full((10, 1, len(things), 4), -1.0)
    per_class = torch.full((len(isthing),), float("nan"), dtype=torch.float64)
    # A class has all its entries or, when the truth lacks it, none.
    occurs = precision[0, 0, :, 0] > -1
    per_class[torch.from_numpy(things[occurs])] = torch.from_numpy(
        precision[:, :, occurs, 0].mean(axis=(0, 1))
    )
    return MaskAPResult(
        ap=_mean(precision[..., 0]),
        ap50=_mean(precision[0, ..., 0]),
        ap75=_mean(precision[5, ..., 0]),
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        per_class=per_class,
        num_classes=int(occurs.sum()),
    )


def _mean(precision: NDArray[np.float64]) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else 0.0
