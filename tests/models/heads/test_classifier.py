from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.classifiers import (
    TextProjection,
    cosine_logits,
    fuse,
    max_over_synonyms,
    squash,
    visible_patches,
    with_no_object,
)


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_class_scores_as_its_best_name(counts: list[int], dtype: torch.dtype) -> None:
    # all negative: a zero that stands in for nothing would win
    logits = -randn(2, 3, sum(counts)).abs().to(dtype) - 1
    best = max_over_synonyms(logits, counts)
    assert best.shape == (2, 3, len(counts))
    assert best.dtype == dtype
    start = 0
    for k, count in enumerate(counts):
        assert torch.equal(best[..., k], logits[..., start : start + count].max(-1).values)
        start += count


def test_only_the_best_name_gets_a_gradient() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]], requires_grad=True)
    max_over_synonyms(logits, [3, 1]).sum().backward()
    assert torch.equal(logits.grad, torch.tensor([[0.0, 1.0, 0.0, 1.0]]))


def test_cosine_logits_are_scaled_cosines() -> None:
    masks, texts = randn(2, 3, 8), randn(5, 8, seed=1)
    logits = cosine_logits(masks, texts, 10.0)
    for b in range(2):
        for q in range(3):
            for t in range(5):
                a, c = masks[b, q], texts[t]
                expected = 10 * (a @ c) / (a.norm() * c.norm())
                torch.testing.assert_close(logits[b, q, t], expected)


def test_cosine_logits_keep_near_ties_apart_under_autocast() -> None:
    # with CLIP's scale of 100, bfloat16 would round logits to halves
    texts = randn(50, 64, seed=1)
    masks = texts[:1] + 0.5 * randn(40, 64)
    exact = cosine_logits(masks[None], texts, 100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = cosine_logits(masks[None], texts, 100.0)
    torch.testing.assert_close(rough.float(), exact, atol=1e-3, rtol=0)


def test_half_precision_embeddings_are_compared_in_full() -> None:
    masks, texts = randn(1, 3, 8).bfloat16(), randn(5, 8, seed=1)
    torch.testing.assert_close(cosine_logits(masks, texts, 1.0), cosine_logits(masks.float(), texts, 1.0))


def test_a_zero_embedding_has_no_direction_and_no_nan() -> None:
    assert torch.equal(cosine_logits(torch.zeros(1, 1, 8), randn(3, 8), 100.0), torch.zeros(1, 1, 3))


@given(st.integers(1, 6), st.integers(0, 1000))
def test_fusion_is_the_weighted_geometric_mean_made_to_sum_to_one(classes: int, seed: int) -> None:
    mask, clip = 5 * randn(2, 3, classes, seed=seed), 5 * randn(2, 3, classes, seed=seed + 1)
    share = torch.rand(classes, generator=torch.Generator().manual_seed(seed))
    fused = fuse(mask, clip, share)
    torch.testing.assert_close(fused.sum(-1), torch.ones(2, 3))
    for b in range(2):
        for q in range(3):
            p, c = mask[b, q].double().softmax(0), clip[b, q].double().softmax(0)
            product = [
                float(p[k]) ** (1 - float(share[k])) * float(c[k]) ** float(share[k]) for k in range(classes)
            ]
            expected = torch.tensor([value / sum(product) for value in product])
            torch.testing.assert_close(fused[b, q], expected, rtol=1e-4, atol=1e-6)


def test_shares_of_zero_and_one_take_one_classifier_alone() -> None:
    mask, clip = randn(1, 2, 4), randn(1, 2, 4, seed=1)
    torch.testing.assert_close(fuse(mask, clip, torch.zeros(4)), mask.softmax(-1))
    torch.testing.assert_close(fuse(mask, clip, torch.ones(4)), clip.softmax(-1))


def test_fusion_survives_probabilities_that_vanish() -> None:
    fused = fuse(torch.tensor([[[0.0, 500.0]]]), torch.tensor([[[500.0, 0.0]]]), torch.tensor(0.5))
    torch.testing.assert_close(fused, torch.tensor([[[0.5, 0.5]]]))


def test_no_object_takes_its_share_of_every_class() -> None:
    p = randn(2, 3, 4).softmax(-1)
    nothing = torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(0))
    logits = with_no_object(p, nothing)
    joint = logits.exp()
    torch.testing.assert_close(joint[..., :-1], p * (1 - nothing))
    torch.testing.assert_close(joint[..., -1:], nothing)
    torch.testing.assert_close(logits.softmax(-1), joint, atol=1e-6, rtol=1e-5)


def test_certainty_gives_finite_logits() -> None:
    logits = with_no_object(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]]))
    assert logits.isfinite().all()
    assert float(logits[0, 0]) == pytest.approx(math.log(1e-8))


@pytest.mark.parametrize("null", [True, False])
def test_projected_texts_are_compared_and_the_null_embedding_comes_last(null: bool) -> None:
    torch.manual_seed(0)
    projection = TextProjection(6, 4, randn(1, 6, seed=2) if null else None)
    masks, texts, counts, scale = randn(2, 3, 4), randn(5, 6, seed=1), [2, 1, 2], torch.tensor(7.0)
    logits = projection(masks, texts, counts, scale)
    assert logits.shape == (2, 3, 4 if null else 3)

    def score(mask: Tensor, text: Tensor) -> Tensor:
        return 7 * F.cosine_similarity(mask, projection.proj(text), dim=0)

    groups: Sequence[Sequence[int]] = ([0, 1], [2], [3, 4])
    for b in range(2):
        for q in range(3):
            for k, names in enumerate(groups):
                expected = max(score(masks[b, q], texts[t]) for t in names)
                torch.testing.assert_close(logits[b, q, k], expected)
            if projection.null_embed is not None:
                expected = score(masks[b, q], projection.null_embed[0])
                torch.testing.assert_close(logits[b, q, 3], expected)


def test_the_null_embedding_trains_and_leaves_what_it_was_made_from() -> None:
    start = randn(1, 6)
    before = start.clone()
    projection = TextProjection(6, 4, start)
    projection(randn(1, 2, 4), randn(3, 6), [1, 2], torch.tensor(2.0))[..., -1].sum().backward()
    assert projection.null_embed is not None
    assert projection.null_embed.grad is not None
    with torch.no_grad():
        projection.null_embed += 1
    assert torch.equal(start, before)


@pytest.mark.parametrize("view", [(1.0, 1.0), (0.5, 1.0), (0.75, 0.25)])
def test_squash_resizes_the_part_that_is_wanted(view: tuple[float, float]) -> None:
    maps = randn(2, 3, 16, 16)
    high, wide = int(16 * view[0]), int(16 * view[1])
    # what lies outside continues the edge, so cutting first and resizing then is the same
    maps[:, :, high:] = maps[:, :, high - 1 : high]
    maps[:, :, :, wide:] = maps[:, :, :, wide - 1 : wide]
    part = F.interpolate(maps[:, :, :high, :wide], (12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(squash(maps, view, 12), part, atol=1e-5, rtol=1e-5)


def test_squash_looks_nowhere_else_but_at_the_edge() -> None:
    maps = randn(1, 1, 16, 16)
    changed = maps.clone()
    changed[..., 9:, :] = 100
    assert torch.equal(squash(maps, (0.5, 1.0), 8), squash(changed, (0.5, 1.0), 8))


def test_squash_keeps_places_exact_for_half_precision_maps() -> None:
    # read at their centres, alternating columns come back as they are; bfloat16 cannot count to 300
    columns = (torch.arange(300) % 2).expand(1, 1, 4, 300).bfloat16()
    read = squash(columns, (0.5, 1.0), 300)[0, 0, 0]
    torch.testing.assert_close(read, columns[0, 0, 0].float(), atol=1e-3, rtol=0)


def test_a_patch_is_visible_if_any_of_its_pixels_is() -> None:
    logits = torch.full((1, 2, 6, 6), -1.0)
    logits[0, 0, 2, 3] = 0.0
    logits[0, 1, 5, 0] = 1.0
    visible = visible_patches(logits, 3)
    assert visible.shape == (1, 2, 4)
    assert visible[0].tolist() == [[False, True, False, False], [False, False, True, False]]
