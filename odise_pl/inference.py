"""Scores and masks to semantic, panoptic and instance results: pure functions.

Mask2Former (arXiv 2112.01527), section 3.1 and MaskFormer (arXiv 2107.06278), section 3.4.
Throughout: Q queries, K classes; ``class_logits`` [Q, K + 1] with no object last; ``mask_logits`` [Q, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.structures import Instances, PanopticSegmentation, Prediction, Segment, Size


@dataclass(frozen=True)
class InferenceSettings:
    """Thresholds of the published evaluation.

    Attributes:
        object_threshold: queries whose best class scores at most this are left out of the panoptic map.
        overlap_threshold: a segment is kept if at least this share of its mask wins the argmax.
        top_k: instances per image, before stuff classes are removed.
    """

    object_threshold: float = 0.0
    overlap_threshold: float = 0.8
    top_k: int = 100

    def __post_init__(self) -> None:
        for name in ("object_threshold", "overlap_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"inference.{name}={getattr(self, name)} must lie in 0..1")
        if self.top_k < 1:
            raise SettingError(f"inference.top_k={self.top_k} must be 1 or more")


def resize_masks(mask_logits: Tensor, canvas: Size, valid: Size, output: Size) -> Tensor:
    """Masks of a padded image at the size that is asked for.

    Args:
        mask_logits: [Q, h, w] of the whole canvas.
        canvas: size of the padded image.
        valid: size of the image on it.
        output: size of the result.

    Returns:
        [Q, *output] logits; bilinear to the canvas, cropped, bilinear to ``output``.
    """
    full = F.interpolate(mask_logits[None], canvas, mode="bilinear", align_corners=False)
    cropped = full[..., : valid[0], : valid[1]]
    return F.interpolate(cropped, output, mode="bilinear", align_corners=False)[0]


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Sum over queries of class probability times mask probability: [K, H, W]."""
    return torch.einsum("qk,qhw->khw", class_logits.softmax(-1)[:, :-1], mask_logits.sigmoid())


# Class scores that the semantic map holds at once, 128 MB; 847 classes at 1024 x 1024 would be 3.5 GB.
MAX_SCORES = 1 << 25


def semantic_map(class_logits: Tensor, mask_logits: Tensor, chunk: int | None = None) -> Tensor:
    """Best class of every pixel, int64 [H, W].

    Args:
        class_logits: [Q, K + 1].
        mask_logits: [Q, H, W].
        chunk: class maps [H, W] that are in memory at once; None: as many as ``MAX_SCORES`` allows.
    """
    chunk = chunk or max(1, MAX_SCORES // mask_logits[0].numel())
    probabilities, masks = class_logits.softmax(-1)[:, :-1], mask_logits.sigmoid()
    best = torch.full(masks.shape[1:], -1.0, device=masks.device, dtype=masks.dtype)
    label = torch.zeros(masks.shape[1:], device=masks.device, dtype=torch.int64)
    for start in range(0, probabilities.shape[1], chunk):
        part = torch.einsum("qk,qhw->khw", probabilities[:, start : start + chunk], masks)
        value, index = part.max(dim=0)
        better = value > best
        best, label = torch.where(better, value, best), torch.where(better, index + start, label)
    return label


def panoptic(
    class_logits: Tensor, mask_logits: Tensor, isthing: Sequence[bool], settings: InferenceSettings
) -> PanopticSegmentation:
    """One segment id per pixel; stuff segments of one class are merged.

    Args:
        class_logits: [Q, K + 1].
        mask_logits: [Q, H, W].
        isthing: one flag per class.
        settings: thresholds.

    Returns:
        ids int32 [H, W], numbered from 1 in the order of the queries, 0 for void.
    """
    ids = torch.zeros(mask_logits.shape[1:], dtype=torch.int32, device=mask_logits.device)
    scores, labels = class_logits.softmax(-1).max(-1)
    keep = (labels != len(isthing)) & (scores > settings.object_threshold)
    if not keep.any():
        return PanopticSegmentation(ids, ())
    scores, labels = scores[keep], labels[keep]
    masks = mask_logits[keep].sigmoid()
    owner = (scores[:, None, None] * masks).argmax(dim=0)
    chosen = _surviving(owner, masks, settings.overlap_threshold)
    assigned, segments = _number(chosen, labels.tolist(), scores.tolist(), isthing)
    lookup = torch.tensor(assigned, dtype=torch.int32, device=ids.device)
    own_mask = masks.gather(0, owner[None])[0] >= 0.5
    return PanopticSegmentation(torch.where(own_mask, lookup[owner], ids), segments)


def _surviving(owner: Tensor, masks: Tensor, overlap_threshold: float) -> list[bool]:
    """Per kept query: it wins pixels, and enough of those its mask claims."""
    claims = masks >= 0.5
    won = torch.bincount(owner.flatten(), minlength=len(masks))
    claimed = claims.flatten(1).sum(1)
    both = torch.bincount(owner[claims.gather(0, owner[None])[0]], minlength=len(masks))
    alive = (won > 0) & (claimed > 0) & (both > 0)
    enough = won / claimed.clamp(min=1) >= overlap_threshold
    return (alive & enough).tolist()


def _number(
    chosen: list[bool], labels: list[int], scores: list[float], isthing: Sequence[bool]
) -> tuple[list[int], tuple[Segment, ...]]:
    assigned = [0] * len(chosen)
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for query, (wanted, label, score) in enumerate(zip(chosen, labels, scores, strict=True)):
        if not wanted:
            continue
        if not isthing[label] and label in stuff:
            assigned[query] = stuff[label]
            continue
        assigned[query] = len(segments) + 1
        stuff.setdefault(label, assigned[query])
        segments.append(Segment(assigned[query], label, bool(isthing[label]), score=score))
    return assigned, tuple(segments)


def instances(
    class_logits: Tensor, mask_logits: Tensor, isthing: Sequence[bool], settings: InferenceSettings
) -> Instances:
    """The best query and class pairs, things only, scored by class times mean mask probability."""
    labels, queries, scores = ranked(class_logits, isthing, settings.top_k)
    # many classes share a query: the masks are scored once per query
    used, row = queries.unique(return_inverse=True)
    logits = mask_logits[used]
    masks = logits > 0
    inside = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    return Instances(labels, scores * inside[row], masks[row])


def ranked(class_logits: Tensor, isthing: Sequence[bool], top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Things among the best ``top_k`` pairs of query and class: labels, queries, probabilities, [M] each."""
    probabilities = class_logits.softmax(-1)[:, :-1]
    classes = probabilities.shape[1]
    scores, flat = probabilities.flatten().topk(min(top_k, probabilities.numel()), sorted=False)
    labels, queries = flat % classes, flat // classes
    things = torch.tensor(isthing, dtype=torch.bool, device=labels.device)[labels]
    return labels[things], queries[things], scores[things]


def predict(
    class_logits: Tensor,
    mask_logits: Tensor,
    isthing: Sequence[bool],
    settings: InferenceSettings,
    canvas: Size,
    valid: Size,
    output: Size,
) -> Prediction:
    """All three results of one image: class logits [Q, K + 1], mask logits [Q, h, w] of the canvas."""
    masks = resize_masks(mask_logits, canvas, valid, output)
    return Prediction(
        panoptic(class_logits, masks, isthing, settings),
        instances(class_logits, masks, isthing, settings),
        semantic_map(class_logits, masks),
    )
