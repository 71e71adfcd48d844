from __future__ import annotations

import math

import torch

from odise_pl.losses.point_losses import (
    paired_cross_entropy,
    paired_dice,
    pairwise_cross_entropy,
    pairwise_dice,
    sample_masks,
)

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(3, 11, generator=GENERATOR)
TRUTH = (torch.rand(4, 11, generator=GENERATOR) > 0.5).float()


def cross_entropy(logits: list[float], truth: list[float]) -> float:
    terms = []
    for x, t in zip(logits, truth, strict=True):
        p = 1 / (1 + math.exp(-x))
        terms.append(-(t * math.log(p) + (1 - t) * math.log(1 - p)))
    return sum(terms) / len(terms)


def dice(logits: list[float], truth: list[float]) -> float:
    p = [1 / (1 + math.exp(-x)) for x in logits]
    overlap = sum(a * t for a, t in zip(p, truth, strict=True))
    return 1 - (2 * overlap + 1) / (sum(p) + sum(truth) + 1)


def test_pairwise_losses_equal_loop() -> None:
    for function, scalar in ((pairwise_cross_entropy, cross_entropy), (pairwise_dice, dice)):
        expected = torch.tensor([[scalar(x.tolist(), t.tolist()) for t in TRUTH] for x in LOGITS])
        torch.testing.assert_close(function(LOGITS, TRUTH), expected)


def test_paired_losses_are_diagonal_of_pairwise_losses() -> None:
    torch.testing.assert_close(
        paired_cross_entropy(LOGITS, TRUTH[:3]), pairwise_cross_entropy(LOGITS, TRUTH[:3]).diagonal()
    )
    torch.testing.assert_close(paired_dice(LOGITS, TRUTH[:3]), pairwise_dice(LOGITS, TRUTH[:3]).diagonal())


def test_extreme_logits_stay_finite() -> None:
    extreme = torch.tensor([[1e4, -1e4]])
    for truth in (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])):
        for function in (pairwise_cross_entropy, pairwise_dice, paired_cross_entropy, paired_dice):
            assert function(extreme, truth).isfinite().all()


def test_masks_are_sampled_bilinearly() -> None:
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 1] = True
    points = torch.tensor([[[0.75, 0.25], [0.5, 0.25], [0.5, 0.5], [0.25, 0.75]]])
    torch.testing.assert_close(sample_masks(mask, points), torch.tensor([[1.0, 0.5, 0.25, 0.0]]))
