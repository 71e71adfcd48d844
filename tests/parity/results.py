"""Panoptic maps, instances and semantic scores against recorded ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from odise_pl.models.inference import (
    InferenceSettings,
    instances,
    panoptic,
    resize_masks,
    semantic_map,
)
from odise_pl.structures import Instances
from tests.parity.checks import STAGE, Check, Tolerance, compare, compare_maps, equal
from tests.parity.features import Evaluation
from tests.parity.records import Case


def check_postprocess(case: Case) -> list[Check]:
    """Results of recorded logits."""
    checks: list[Check] = []
    for i, logits in case.numbered("cases", "/mask_cls").items():
        part = case.under(f"cases/{i}/")
        things = part.fact("things")
        isthing = [k in things for k in range(logits.shape[1] - 1)]
        scores = logits.softmax(-1)
        checks += _image_checks(f"cases/{i}", scores, part.tensor("mask_pred"), isthing, part, part, STAGE)
    return checks


def result_checks(
    run: Evaluation, stage: str, class_scores: Tensor, mask_logits: Tensor, tolerance: Tolerance
) -> list[Check]:
    """Results of every image from class scores, and mask logits of the canvas."""
    images, sizes = run.canvas
    canvas = (images.shape[2], images.shape[3])
    checks: list[Check] = []
    for i, valid in enumerate(sizes):
        masks = resize_masks(mask_logits[i], canvas, valid, run.output_size(i))
        name, part = f"image {i} ({stage})", run.case.under(f"out/{i}/")
        checks += _image_checks(name, class_scores[i], masks, run.classes.isthing, run.case, part, tolerance)
    return checks


def _image_checks(
    stage: str,
    class_scores: Tensor,
    mask_logits: Tensor,
    isthing: Sequence[bool],
    settings: Case,
    recorded: Case,
    tolerance: Tolerance,
) -> list[Check]:
    """All results of one image: class scores [Q, K + 1], resized mask logits [Q, H, W]."""
    held, thresholds = recorded.tensors, _thresholds(settings)
    scores = semantic_scores(class_scores, mask_logits)
    whole = panoptic(class_scores, mask_logits, isthing, thresholds)
    segments = [(s.id, s.category, s.isthing) for s in whole.segments]
    checks = compare(f"{stage}: semantic scores", scores, held.get("sem_seg"), tolerance)
    if "sem_seg" in held and not tolerance.share:  # a flip may decide near ties
        checks += compare_maps(
            f"{stage}: semantic map",
            semantic_map(class_scores, mask_logits),
            held["sem_seg"].argmax(0),
            tolerance,
        )
    checks += compare_maps(f"{stage}: panoptic map", whole.ids, held.get("panoptic_seg"), tolerance)
    checks += _segment_checks(f"{stage}: segments", segments, recorded)
    if "inst_masks" in held:
        found = instances(class_scores, mask_logits, isthing, thresholds)
        checks += _instance_checks(stage, found, recorded, tolerance)
    return checks


def _thresholds(case: Case) -> InferenceSettings:
    """The thresholds of the case, by default the published ones."""
    usual = InferenceSettings()
    return InferenceSettings(
        case.facts.get("object_mask_threshold", usual.object_threshold),
        case.facts.get("overlap_threshold", usual.overlap_threshold),
        case.facts.get("topk", usual.top_k),
    )


def _segment_checks(stage: str, own: Sequence[tuple[int, int, bool]], recorded: Case) -> list[Check]:
    part = recorded.under("segments_info")
    if not part.facts:
        return []
    held: list[tuple[int, int, bool]] = []
    while f"/{len(held)}/id" in part.facts:
        place = f"/{len(held)}/"
        held.append((part.fact(place + "id"), part.fact(place + "category_id"), part.fact(place + "isthing")))
    wrong = len(set(own) ^ set(held))
    note = f"{own}, recorded {held}" if wrong else f"{len(held)} segments"
    return [equal(stage, wrong, len(held), note)]


def _instance_checks(stage: str, own: Instances, recorded: Case, tolerance: Tolerance) -> list[Check]:
    """Instances have no order: each is compared with the most similar recorded one of its class."""
    labels, scores, masks = (recorded.tensor(f"inst_{name}") for name in ("classes", "scores", "masks"))
    stages = [f"{stage}: instance{what}" for what in ("s", " scores", " masks")]
    pairs = _pairs(own, Instances(labels, scores, masks.bool()))
    mine, theirs = pairs[:, 0], pairs[:, 1]
    total = len(own.labels) + len(labels)
    alone = total - 2 * len(pairs)
    note = f"{len(labels)} recorded" + (f", {alone} without a match" if alone else "")
    return [
        Check(stages[0], alone / max(total, 1), tolerance.share, note),
        *compare(stages[1], own.scores[mine], scores[theirs], tolerance),
        *compare_maps(stages[2], own.masks[mine], masks[theirs].bool(), tolerance),
    ]


def _pairs(own: Instances, recorded: Instances) -> Tensor:
    """Indices of matching instances, ours and recorded: [N, 2]."""
    if not len(own.labels) or not len(recorded.labels) or own.masks.shape[1:] != recorded.masks.shape[1:]:
        return torch.zeros(0, 2, dtype=torch.int64)
    differing = torch.cdist(own.masks.flatten(1).float(), recorded.masks.flatten(1).float(), p=1)
    distance = differing / own.masks[0].numel() + (own.scores[:, None] - recorded.scores[None]).abs()
    same = own.labels[:, None] == recorded.labels[None]
    rows, columns = linear_sum_assignment(torch.where(same, distance, 1e6).numpy())
    pairs = torch.stack([torch.as_tensor(rows), torch.as_tensor(columns)], dim=1)
    return pairs[same[pairs[:, 0], pairs[:, 1]]]


def semantic_scores(class_scores: Tensor, mask_logits: Tensor) -> Tensor:
    """Sum over queries of class score times mask probability: [K, H, W]."""
    return torch.einsum("qk,qhw->khw", class_scores[:, :-1], mask_logits.sigmoid())
