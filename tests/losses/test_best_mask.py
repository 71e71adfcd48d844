"""OpenSeg's loss against a loop over segments, masks and points."""

from __future__ import annotations

import torch
from made import predictions, seeded, target
from torch.nn import functional as F

from odise_pl.losses.best_mask import BestMaskCriterion
from odise_pl.losses.criterion import LossWeights
from odise_pl.losses.matcher import HungarianMatcher


def test_loss_is_the_dice_of_each_segments_best_mask() -> None:
    output, targets = predictions(), [target(2), target(3, 1)]
    output.mask_logits.requires_grad_(True)
    criterion = BestMaskCriterion(HungarianMatcher(num_points=40), LossWeights(dice=0.5))
    (loss,) = criterion([output], targets, seeded(3), [0, 1])
    draw, total, chosen = seeded(3), 0.0, set()
    for image, (logits, truth) in enumerate(zip(output.mask_logits.detach(), targets, strict=True)):
        grid = (2 * draw(1, 40, 2) - 1)[:, :, None]
        for mask in truth.masks:
            t = F.grid_sample(mask.float()[None, None], grid, align_corners=False).flatten()
            costs = []
            for one in logits:
                s = F.grid_sample(one[None, None], grid, align_corners=False).flatten().sigmoid()
                costs.append(float(1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)))
            total += 0.5 * min(costs) / 5
            chosen.add((image, costs.index(min(costs))))
    torch.testing.assert_close(loss.dice, torch.tensor(total), rtol=1e-4, atol=1e-6)
    assert float(loss.mask.detach()) == float(loss.classification.detach()) == 0
    loss.dice.backward()
    assert output.mask_logits.grad is not None
    learns = output.mask_logits.grad.abs().sum((2, 3)).nonzero().tolist()
    assert {tuple(place) for place in learns} == chosen


def test_images_without_segments_cost_nothing() -> None:
    criterion = BestMaskCriterion(HungarianMatcher(num_points=40), LossWeights())
    (loss,) = criterion([predictions()], [target(0), target(0)], seeded(3), [0, 1])
    assert float(loss.dice) == 0
