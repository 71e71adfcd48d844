"""Random and real panoptic maps, and predictions derived from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from odise_pl.structures import Instances, PanopticSegmentation, Prediction, Segment, Truth

NUM_CLASSES = 5
ISTHING = (True, True, False, False, True)


def segmentation(ids: np.ndarray, segments: list[Segment]) -> PanopticSegmentation:
    return PanopticSegmentation(torch.from_numpy(np.ascontiguousarray(ids)), tuple(segments))


def random_pair(rng: np.random.Generator) -> tuple[PanopticSegmentation, PanopticSegmentation]:
    """A prediction and its truth, which partly agree; the truth has void and crowds, even of one class."""
    labels = np.kron(rng.integers(0, 7, (3, 4)), np.ones((3, 5), dtype=np.int64))
    changed = np.where(rng.random(labels.shape) < 0.2, rng.integers(0, 7, labels.shape), labels)
    moved = np.roll(changed, tuple(rng.integers(0, 3, 2)), (0, 1))
    categories = rng.integers(0, NUM_CLASSES, 7)
    others = np.where(rng.random(7) < 0.3, rng.integers(0, NUM_CLASSES, 7), categories)
    return _painted(rng, moved, others, crowds=0.0), _painted(rng, labels, categories, crowds=0.35)


def _painted(
    rng: np.random.Generator, labels: np.ndarray, categories: np.ndarray, crowds: float
) -> PanopticSegmentation:
    ids = np.array([0, *rng.choice(2**24 - 1, 6, replace=False) + 1])
    segments = [
        Segment(int(ids[k]), int(categories[k]), ISTHING[categories[k]], iscrowd=bool(rng.random() < crowds))
        for k in rng.permutation(np.arange(1, 7))
        if (labels == k).any()
    ]
    return segmentation(ids[labels], segments)


def semantic_map(truth: PanopticSegmentation, fill: int = 0) -> torch.Tensor:
    """The class of each pixel's segment, ``fill`` where it has none."""
    classes = torch.full(truth.ids.shape, fill, dtype=torch.int64)
    for segment in truth.segments:
        classes[truth.ids == segment.id] = segment.category
    return classes


def perfect_instances(truth: PanopticSegmentation) -> Instances:
    """All things but crowds, with exact masks and full confidence."""
    things = [s for s in truth.segments if s.isthing and not s.iscrowd]
    height, width = truth.ids.shape
    masks = [truth.ids == s.id for s in things]
    return Instances(
        labels=torch.tensor([s.category for s in things], dtype=torch.int64),
        scores=torch.ones(len(things)),
        masks=torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
    )


def perfect(truth: Truth, shift: int = 0) -> Prediction:
    """The truth as a prediction, moved by ``shift`` columns."""
    objects = truth.instances
    if objects is None:
        found = perfect_instances(truth.panoptic)
    else:
        labels, masks = objects.labels[~objects.crowd], objects.masks[~objects.crowd]
        found = Instances(labels, torch.ones(len(labels)), masks)
    semantic = semantic_map(truth.panoptic, fill=-1) if truth.semantic is None else truth.semantic.long()
    return Prediction(
        shifted(truth.panoptic, 0, shift),
        replace(found, scores=torch.linspace(1, 0.3, len(found.labels)), masks=found.masks.roll(shift, 2)),
        semantic.roll(shift, 1),
    )


def empty(truth: PanopticSegmentation) -> Prediction:
    """A prediction of nothing."""
    size = truth.ids.shape
    none = Instances(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, *size, dtype=torch.bool)
    )
    return Prediction(
        PanopticSegmentation(torch.zeros(size, dtype=torch.int32), ()), none, torch.full(size, -1)
    )


def shifted(truth: PanopticSegmentation, rows: int = 4, columns: int = 9) -> PanopticSegmentation:
    """A plausible wrong prediction: the truth moved, without hidden segments, crowds as plain ones."""
    ids = torch.roll(truth.ids, (rows, columns), (0, 1))
    seen = set(np.unique(ids.numpy()).tolist())
    return PanopticSegmentation(ids, tuple(replace(s, iscrowd=False) for s in truth.segments if s.id in seen))
