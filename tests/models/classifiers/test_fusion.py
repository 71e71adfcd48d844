"""The rules of fusion against loops over masks and classes, written from the papers' equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from odise_pl.models.classifiers.fusion import (
    RULES,
    ClassifierSettings,
    Scores,
    adjust_no_object,
    fuse_flat_seen,
    fuse_product,
)

SEEN = (True, False, True, False, False)
SHARES = [0.3 if seen else 0.6 for seen in SEEN]


def scores(masks: int = 7, size: float = 3.0) -> tuple[Scores, Tensor]:
    """Random scores, and the head's logits with no object last."""
    generator = torch.Generator().manual_seed(0)
    own, clip = (size * torch.randn(masks, n, generator=generator) for n in (len(SEEN) + 1, len(SEEN)))
    none, no_object = own[:, -1:], own.softmax(-1)[:, -1:]
    return Scores(own[:, :-1], none, no_object, clip, torch.tensor(SHARES), torch.tensor(SEEN)), own


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def simbaseline(own: list[float], clip: list[float]) -> list[float]:
    a, b = softmax(own), softmax(clip)
    return [a[k] ** (1 - w) * b[k] ** w for k, w in enumerate(SHARES)]


def zegformer(own: list[float], clip: list[float]) -> list[float]:
    a, b = softmax(own), softmax([*clip, own[-1]])
    seen = [b[k] for k, flag in enumerate(SEEN) if flag]
    found = []
    for k, flag in enumerate(SEEN):
        other = sum(seen) / len(seen) if flag else b[k]
        found.append(a[k] ** (1 - SHARES[k]) * other ** SHARES[k])
    return found


@pytest.mark.parametrize(
    ("rule", "slow"), [(fuse_product, simbaseline), (fuse_flat_seen, zegformer)], ids=["product", "flat_seen"]
)
@pytest.mark.parametrize("size", [0.3, 3.0, 30.0])  # the last as of a fixed scale of 100
def test_rule_equals_loop(
    rule: Callable[[Scores], Tensor], slow: Callable[..., list[float]], size: float
) -> None:
    given, own = scores(size=size)
    for row, head, clip in zip(rule(given), own.tolist(), given.clip.tolist(), strict=True):
        torch.testing.assert_close(row[:-1], torch.tensor(slow(head, clip)), rtol=1e-4, atol=1e-6)
        assert float(row[-1]) == pytest.approx(softmax(head)[-1], abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_rules_keep_the_probability_of_no_object(rule: str) -> None:
    given, _ = scores()
    found = RULES[rule](given)
    torch.testing.assert_close(found[:, -1:], given.no_object, rtol=0, atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(7)) is (rule == "normalised")


@pytest.mark.parametrize("rule", RULES)
def test_certain_queries_are_finite(rule: str) -> None:
    """No object leads by so much that float32 rounds its probability to 1, or to 0."""
    given, _ = scores(2)
    none, certain = torch.tensor([[90.0], [-torch.inf]]), torch.tensor([[1.0], [0.0]])
    sure = replace(given, head_none=none, no_object=certain)
    assert RULES[rule](sure).isfinite().all()


@pytest.mark.parametrize("prompt", [None, 3, (), (1,), "no place", ("a {}", "no place")])
def test_prompts_are_texts_with_a_place_for_the_name(prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"fusion\.mask_prompt"):
        ClassifierSettings(mask_prompt=prompt)


def test_clip_does_not_rank_seen_classes_of_flat_seen() -> None:
    given, _ = scores()
    swapped = given.clip.clone()
    swapped[:, [0, 2]] = given.clip[:, [2, 0]]
    again = replace(given, clip=swapped)
    torch.testing.assert_close(fuse_flat_seen(again), fuse_flat_seen(given))
    assert not torch.allclose(fuse_product(again), fuse_product(given))


def test_confident_clip_lowers_the_probability_of_no_object() -> None:
    given, _ = scores()
    found = adjust_no_object(given.no_object, given.clip, 0.5)
    for after, before, clip in zip(found, given.no_object, given.clip.tolist(), strict=True):
        assert float(after) == pytest.approx(float(before) * (1 - 0.5 * max(softmax(clip))), rel=1e-5)
    assert torch.equal(adjust_no_object(given.no_object, given.clip, 0.0), given.no_object)


def test_objectness_needs_scores_of_clip() -> None:
    with pytest.raises(ValueError, match=r"fusion\.objectness_share=0\.5"):
        ClassifierSettings(mode="diffusion", objectness_share=0.5)


@pytest.mark.parametrize("setting", ["rule", "regions"])
def test_unknown_choices_are_named(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"fusion\.{setting}=other"):
        ClassifierSettings(**{setting: "other"})
