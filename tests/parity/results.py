"""Panoptic maps, instances and semantic scores against recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from odise_pl.models.inference import InferenceSettings, instances, panoptic, ranked, semantic_scores
from odise_pl.structures import Instances, PanopticSegmentation
from tests.parity.checks import Check, agree_where_decided, compare, equal, near, relative


def result_checks(
    stage: str,
    class_logits: Tensor,
    mask_logits: Tensor,
    isthing: Sequence[bool],
    settings: InferenceSettings,
    recorded: Mapping[str, Any],
    tolerance: float,
) -> list[Check]:
    """All results of one image.

    Args:
        stage: put before the checks' names.
        class_logits: [Q, K + 1].
        mask_logits: [Q, H, W] at the size of the results.
        isthing: per class.
        settings: thresholds.
        recorded: tensors ``panoptic_seg``, ``sem_seg``, ``inst_*``; ``segments``: (id, category, isthing).
        tolerance: of scores, and of the margin that makes a decision a close one.
    """
    semantic = semantic_scores(class_logits, mask_logits)
    checks = compare(f"{stage}: semantic scores", semantic, recorded.get("sem_seg"), tolerance)
    if "sem_seg" in recorded and recorded["sem_seg"].shape == semantic.shape:
        best = recorded["sem_seg"].argmax(0)
        checks.append(
            agree_where_decided(
                f"{stage}: semantic map", semantic.argmax(0), best, _close_maximum(semantic, tolerance)
            )
        )
    if "panoptic_seg" in recorded:
        own = panoptic(class_logits, mask_logits, isthing, settings)
        undecided = _undecided_panoptic(class_logits, mask_logits, settings, tolerance)
        checks += _panoptic_checks(stage, own, recorded["panoptic_seg"], recorded["segments"], undecided)
    if all(f"inst_{name}" in recorded for name in ("masks", "classes", "scores")):
        found = instances(class_logits, mask_logits, isthing, settings)
        spare = _close_ranks(class_logits, settings.top_k, tolerance)
        undecided = (near(mask_logits, tolerance)).any(0)
        _, queries, scores = ranked(class_logits, isthing, settings.top_k)
        parts = scores, mask_logits.sigmoid()[queries]
        checks += _instance_checks(stage, found, parts, recorded, undecided, spare, tolerance)
    return checks


def thresholds(facts: Mapping[str, Any]) -> InferenceSettings:
    """The published thresholds unless the facts of a case name others."""
    usual = InferenceSettings()
    return InferenceSettings(
        facts.get("object_mask_threshold", usual.object_threshold),
        facts.get("overlap_threshold", usual.overlap_threshold),
        facts.get("topk", usual.top_k),
    )


def segments_of(facts: Mapping[str, Any], prefix: str) -> list[tuple[int, int, bool]] | None:
    """(id, category, isthing) of every recorded segment; None if nothing was recorded of them."""
    if not any(name == prefix or name.startswith(prefix + "/") for name in facts):
        return None
    found: list[tuple[int, int, bool]] = []
    while f"{prefix}/{len(found)}/id" in facts:
        place = f"{prefix}/{len(found)}"
        found.append((facts[f"{place}/id"], facts[f"{place}/category_id"], facts[f"{place}/isthing"]))
    return found


def _panoptic_checks(
    stage: str,
    own: PanopticSegmentation,
    ids: Tensor,
    segments: Sequence[tuple[int, int, bool]] | None,
    undecided: Tensor,
) -> list[Check]:
    pixels = agree_where_decided(f"{stage}: panoptic map", own.ids.to(ids.dtype), ids, undecided)
    if segments is None:
        return [pixels]
    own_segments = [(s.id, s.category, s.isthing) for s in own.segments]
    wrong = len(set(own_segments) ^ set(segments))
    note = f"{len(segments)} segments" if not wrong else f"{own_segments}, recorded {list(segments)}"
    return [pixels, equal(f"{stage}: segments", wrong, len(segments), note)]


def _close_maximum(scores: Tensor, tolerance: float) -> Tensor:
    """Where the two best of [N, H, W] are close: bool [H, W]."""
    if len(scores) < 2:
        return torch.zeros(scores.shape[1:], dtype=torch.bool)
    first, second = scores.topk(2, dim=0).values
    return first - second < tolerance * scores.abs().max()


def _undecided_panoptic(
    class_logits: Tensor, mask_logits: Tensor, settings: InferenceSettings, tolerance: float
) -> Tensor:
    """Pixels whose owner is in doubt, or whether the owner's mask covers them: bool [H, W]."""
    scores, labels = class_logits.softmax(-1).max(-1)
    keep = (labels != class_logits.shape[1] - 1) & (scores > settings.object_threshold)
    if not keep.any():
        return torch.zeros(mask_logits.shape[1:], dtype=torch.bool)
    masks = mask_logits[keep]
    weighted = scores[keep, None, None] * masks.sigmoid()
    owner = weighted.argmax(0, keepdim=True)
    return _close_maximum(weighted, tolerance) | near(masks, tolerance).gather(0, owner)[0]


def _close_ranks(class_logits: Tensor, top_k: int, tolerance: float) -> int:
    """How many pairs of query and class may change places over the edge of what is kept."""
    values = class_logits.softmax(-1)[:, :-1].flatten().sort(descending=True).values
    if len(values) <= top_k:
        return 0
    allowed = tolerance * values[0]
    kept, left = values[:top_k], values[top_k:]
    return min(int((kept - left[0] < allowed).sum()), int((kept[-1] - left < allowed).sum()))


def _instance_checks(
    stage: str,
    own: Instances,
    parts: tuple[Tensor, Tensor],
    recorded: Mapping[str, Any],
    undecided: Tensor,
    spare: int,
    tolerance: float,
) -> list[Check]:
    """Instances have no order: each is compared with the recorded one that is most like it.

    A score is a mean over the mask, so one pixel more or less moves that of a small mask by more than the
    tolerance: scores are compared over the recorded masks. ``parts``: class and mask probabilities, [M] and
    [M, H, W].
    """
    labels, scores, masks = (recorded[f"inst_{name}"] for name in ("classes", "scores", "masks"))
    pairs = _pairs(own, labels, scores, masks.bool())
    alone = len(own.labels) + len(labels) - 2 * len(pairs)
    note = f"{len(labels)} recorded" + (f", {alone} on the edge of the ranking" if alone else "")
    checks = [equal(f"{stage}: instances", max(0, alone - 2 * spare), len(labels), note)]
    if not pairs:
        return checks
    mine, theirs = (torch.tensor(column) for column in zip(*pairs, strict=True))
    shown = masks[theirs].bool()
    inside = (parts[1][mine] * shown).flatten(1).sum(1) / (shown.flatten(1).sum(1) + 1e-6)
    difference = relative(parts[0][mine] * inside, scores[theirs])
    spread = undecided.expand(len(mine), -1, -1)
    return [
        *checks,
        Check(f"{stage}: instance scores", difference, tolerance),
        agree_where_decided(f"{stage}: instance masks", own.masks[mine], shown, spread),
    ]


def _pairs(own: Instances, labels: Tensor, scores: Tensor, masks: Tensor) -> list[tuple[int, int]]:
    """(ours, recorded) of one class, with the most similar masks and scores."""
    if not len(own.labels) or not len(labels) or own.masks.shape[1:] != masks.shape[1:]:
        return []
    ours, theirs = own.masks.flatten(1).float(), masks.flatten(1).float()
    together = ours @ theirs.T
    differing = ours.sum(1)[:, None] + theirs.sum(1)[None] - 2 * together
    distance = differing / ours.shape[1] + (own.scores[:, None] - scores[None]).abs()
    other = own.labels[:, None] != labels[None]
    rows, columns = linear_sum_assignment((distance + 1e6 * other).numpy())
    return [(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if not bool(other[i, j])]
