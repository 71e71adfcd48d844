from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.classifiers.fusion import fuse, with_no_object
from odise_pl.models.classifiers.regions import resize_to_square, visible_patches
from odise_pl.models.classifiers.text import cosine_logits, max_over_synonyms


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_max_over_synonyms_equals_loop(counts: list[int], dtype: torch.dtype) -> None:
    # all negative, so a padding of zeros would win
    logits = -randn(2, 3, sum(counts)).abs().to(dtype) - 1
    best = max_over_synonyms(logits, counts)
    assert best.shape == (2, 3, len(counts))
    assert best.dtype == dtype
    assert torch.equal(best, max_over_synonyms(logits, torch.tensor(counts)))
    start = 0
    for k, count in enumerate(counts):
        assert torch.equal(best[..., k], logits[..., start : start + count].max(-1).values)
        start += count


def test_cosine_logits_stay_exact_under_autocast() -> None:
    # with a scale of 100, bfloat16 would round logits to multiples of 0.5
    texts = randn(50, 64, seed=1)
    masks = texts[:1] + 0.5 * randn(40, 64)
    exact = cosine_logits(masks[None], texts, 100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = cosine_logits(masks[None], texts, 100.0)
    torch.testing.assert_close(rough.float(), exact, atol=1e-3, rtol=0)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_fusion_is_weighted_geometric_mean(classes: int, seed: int) -> None:
    mask, clip = 5 * randn(2, 3, classes, seed=seed), 5 * randn(2, 3, classes, seed=seed + 1)
    share = torch.rand(classes, generator=torch.Generator().manual_seed(seed))
    fused = fuse(mask, clip, share)
    product = mask.softmax(-1) ** (1 - share) * clip.softmax(-1) ** share
    torch.testing.assert_close(fused, product / product.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_fusion_of_vanishing_probabilities() -> None:
    fused = fuse(torch.tensor([[[0.0, 500.0]]]), torch.tensor([[[500.0, 0.0]]]), torch.tensor(0.5))
    torch.testing.assert_close(fused, torch.tensor([[[0.5, 0.5]]]))


def test_scores_of_certain_queries_are_probabilities() -> None:
    certain = with_no_object(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]]))
    torch.testing.assert_close(certain, torch.tensor([[0.0, 0.0, 1.0]]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("view", [(1.0, 1.0), (0.5, 1.0), (0.75, 0.25)])
def test_resize_to_square_resizes_a_part_of_the_map(view: tuple[float, float]) -> None:
    maps = randn(2, 3, 16, 16)
    high, wide = int(16 * view[0]), int(16 * view[1])
    # the outside repeats the edge, so cropping before resizing gives the same result
    maps[:, :, high:] = maps[:, :, high - 1 : high]
    maps[:, :, :, wide:] = maps[:, :, :, wide - 1 : wide]
    part = F.interpolate(maps[:, :, :high, :wide], (12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_to_square(maps, view, 12), part, atol=1e-5, rtol=1e-5)


def test_resize_to_square_stays_exact_for_half_precision_maps() -> None:
    # sampled at their centres, columns are unchanged; bfloat16 could not represent the coordinates
    columns = (torch.arange(300) % 2).expand(1, 1, 4, 300).bfloat16()
    read = resize_to_square(columns, (0.5, 1.0), 300)[0, 0, 0]
    torch.testing.assert_close(read, columns[0, 0, 0].float(), atol=1e-3, rtol=0)


def test_patch_with_any_mask_pixel_is_visible() -> None:
    logits = torch.full((1, 2, 6, 6), -1.0)
    logits[0, 0, 2, 3] = 0.0
    logits[0, 1, 5, 0] = 1.0
    visible = visible_patches(logits, 3)
    assert visible.shape == (1, 2, 4)
    assert visible[0].tolist() == [[False, True, False, False], [False, False, True, False]]
