from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from odise_pl.models.inference import InferenceSettings, instances, panoptic, semantic_scores
from tests.parity.checks import STAGE
from tests.parity.results import result_checks, segments_of

SETTINGS = InferenceSettings(overlap_threshold=0.3, top_k=12)
THINGS = (True, True, False)


def logits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Six queries, three classes: classes that stand out and smooth masks."""
    generator = torch.Generator().manual_seed(seed + 1)  # of which all have several segments
    coarse = 4 * torch.randn(1, 6, 6, 8, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (48, 64), mode="bilinear")[0]
    classes = 3 * torch.randn(6, 4, generator=generator)
    classes[:, -1] -= 3
    return classes, masks


def record(classes: Tensor, masks: Tensor) -> dict[str, Any]:
    whole, found = panoptic(classes, masks, THINGS, SETTINGS), instances(classes, masks, THINGS, SETTINGS)
    return {
        "sem_seg": semantic_scores(classes, masks),
        "panoptic_seg": whole.ids.int(),
        "segments": [(s.id, s.category, s.isthing) for s in whole.segments],
        "inst_classes": found.labels,
        "inst_scores": found.scores,
        "inst_masks": found.masks.to(torch.uint8),
    }


def failed(classes: Tensor, masks: Tensor, recorded: dict[str, Any], tolerance: float = STAGE) -> set[str]:
    checks = result_checks("x", classes, masks, THINGS, SETTINGS, recorded, tolerance)
    assert len(checks) == 7
    return {check.stage.removeprefix("x: ") for check in checks if not check.ok}


@pytest.mark.parametrize("seed", range(4))
def test_what_we_find_ourselves_passes_in_any_order_of_instances(seed: int) -> None:
    classes, masks = logits(seed)
    recorded = record(classes, masks)
    order = torch.randperm(len(recorded["inst_scores"]), generator=torch.Generator().manual_seed(seed))
    for name in ("inst_classes", "inst_scores", "inst_masks"):
        recorded[name] = recorded[name][order]
    assert failed(classes, masks, recorded) == set()


@pytest.mark.parametrize("seed", range(4))
def test_differences_within_the_tolerance_pass(seed: int) -> None:
    classes, masks = logits(seed)
    noise = torch.randn(masks.shape, generator=torch.Generator().manual_seed(9))
    recorded = record(classes, masks + 1e-6 * masks.abs().max() * noise)
    assert failed(classes, masks, recorded) == set()


def test_the_cases_have_segments_and_instances() -> None:
    for seed in range(4):
        recorded = record(*logits(seed))
        assert len(recorded["segments"]) >= 2
        assert len(recorded["inst_scores"]) >= 4


def test_wrong_results_are_named() -> None:
    classes, masks = logits()
    recorded = record(classes, masks)
    recorded["sem_seg"] = recorded["sem_seg"] + 0.01
    recorded["panoptic_seg"][:20, :20] = 0
    recorded["segments"] = recorded["segments"][1:]
    recorded["inst_scores"] = recorded["inst_scores"] * 1.01
    recorded["inst_masks"][0] = 1 - recorded["inst_masks"][0]
    assert failed(classes, masks, recorded) == {
        "semantic scores",
        "panoptic map",
        "segments",
        "instance scores",
        "instance masks",
    }


def test_one_decided_pixel_is_enough_to_fail() -> None:
    classes, masks = logits()
    recorded = record(classes, masks)
    place = (masks.sigmoid() - 0.5).abs().amax(0).flatten().argmax()
    recorded["panoptic_seg"].view(-1)[place] += 1
    assert failed(classes, masks, recorded) == {"panoptic map"}


def test_a_missing_instance_fails_unless_it_was_on_the_edge_of_the_ranking() -> None:
    classes, masks = logits()
    recorded = record(classes, masks)
    short = recorded | {n: recorded[n][1:] for n in ("inst_classes", "inst_scores", "inst_masks")}
    assert failed(classes, masks, short) == {"instances"}
    # two classes of one query share a score: with a ranking that ends between them, either may be kept
    classes = torch.full((6, 4), -20.0)
    classes[0, :2] = 5.0
    one = InferenceSettings(top_k=1)
    found = instances(classes, masks, THINGS, one)
    other = {
        "inst_classes": 1 - found.labels,
        "inst_scores": found.scores,
        "inst_masks": found.masks.to(torch.uint8),
    }
    checks = result_checks("x", classes, masks, THINGS, one, other, STAGE)
    assert [(c.stage, c.ok) for c in checks] == [("x: instances", True)]
    assert checks[0].note == "1 recorded, 2 on the edge of the ranking"
    classes[0, 1], other["inst_classes"] = 4.9, torch.tensor([1])
    checks = result_checks("x", classes, masks, THINGS, one, other, STAGE)
    assert [(c.stage, c.ok) for c in checks] == [("x: instances", False)]


def test_nothing_recorded_and_nothing_found_agree() -> None:
    classes, masks = logits()
    classes[:, -1] += 100  # no object anywhere
    recorded = record(classes, masks)
    assert recorded["segments"] == []
    assert failed_names(classes, masks, recorded) == set()


def failed_names(classes: Tensor, masks: Tensor, recorded: dict[str, Any]) -> set[str]:
    checks = result_checks("x", classes, masks, THINGS, SETTINGS, recorded, STAGE)
    return {check.stage for check in checks if not check.ok}


def test_segments_are_read_until_the_first_that_is_missing() -> None:
    facts = {
        "out/segments_info/0/id": 1,
        "out/segments_info/0/category_id": 5,
        "out/segments_info/0/isthing": False,
        "out/segments_info/2/id": 9,
    }
    assert segments_of(facts, "out/segments_info") == [(1, 5, False)]
    assert segments_of({"out/segments_info": []}, "out/segments_info") == []
