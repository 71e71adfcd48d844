"""Post-processing as it was published: on masks of all queries at the size of the image at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odise_pl.models.inference import InferenceSettings, number_segments, ranked, resize_masks
from odise_pl.structures import Instances, PanopticSegmentation, Prediction, Size


def predict(
    class_logits: Tensor,
    mask_logits: Tensor,
    isthing: Sequence[bool],
    settings: InferenceSettings,
    canvas: Size,
    valid: Size,
    output: Size,
) -> Prediction:
    """As :func:`odise_pl.models.inference.predict`."""
    masks = resize_masks(mask_logits, canvas, valid, output)
    return Prediction(
        panoptic(class_logits, masks, isthing, settings),
        instances(class_logits, masks, isthing, settings),
        semantic_map(class_logits, masks),
    )


def semantic_map(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    probabilities, masks = class_logits.softmax(-1)[:, :-1], mask_logits.sigmoid()
    best, label = torch.full(masks.shape[1:], -1.0), torch.zeros(masks.shape[1:], dtype=torch.int64)
    chunk = max(1, (1 << 25) // best.numel())
    for start in range(0, probabilities.shape[1], chunk):
        part = torch.einsum("qk,qhw->khw", probabilities[:, start : start + chunk], masks)
        value, index = part.max(dim=0)
        better = value > best
        best, label = torch.where(better, value, best), torch.where(better, index + start, label)
    return label


def panoptic(
    class_logits: Tensor, mask_logits: Tensor, isthing: Sequence[bool], settings: InferenceSettings
) -> PanopticSegmentation:
    scores, labels = class_logits.softmax(-1).max(-1)
    keep = (labels != len(isthing)) & (scores > settings.object_threshold)
    ids = torch.zeros(mask_logits.shape[1:], dtype=torch.int32)
    if not keep.any():
        return PanopticSegmentation(ids, ())
    scores, labels, masks = scores[keep], labels[keep], mask_logits[keep].sigmoid()
    owner = (scores[:, None, None] * masks).argmax(dim=0)
    claims = masks >= 0.5
    shown = claims.gather(0, owner[None])[0]
    won, both = (torch.bincount(x.flatten(), minlength=len(masks)) for x in (owner, owner[shown]))
    claimed = claims.flatten(1).sum(1)
    enough = won / claimed.clamp(min=1) >= settings.overlap_threshold
    chosen = ((won > 0) & (claimed > 0) & (both > 0) & enough).tolist()
    assigned, segments = number_segments(chosen, labels.tolist(), scores.tolist(), isthing)
    return PanopticSegmentation(
        torch.where(shown, torch.tensor(assigned, dtype=torch.int32)[owner], ids), segments
    )


def instances(
    class_logits: Tensor, mask_logits: Tensor, isthing: Sequence[bool], settings: InferenceSettings
) -> Instances:
    labels, queries, scores = ranked(class_logits, isthing, settings.top_k)
    used, row = queries.unique(return_inverse=True)
    masks = mask_logits[used] > 0
    inside = (mask_logits[used].sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    return Instances(labels, scores * inside[row], masks[row])
