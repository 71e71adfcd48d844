from __future__ import annotations

import torch

from odise_pl.losses.point_losses import (
    paired_cross_entropy,
    paired_dice,
    pairwise_cross_entropy,
    pairwise_dice,
    sample_masks,
)


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
