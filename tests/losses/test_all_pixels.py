"""MaskFormer's losses against loops over masks and pixels."""

from __future__ import annotations

import math
from itertools import product

import torch
from made import CLASSES, QUERIES, predictions, seeded, target
from torch import Tensor
from torch.nn import functional as F

from odise_pl.losses.all_pixels import AllPixelsCriterion, AllPixelsMatcher
from odise_pl.losses.criterion import LossWeights
from odise_pl.losses.matcher import Match


class Fixed(AllPixelsMatcher):
    """Returns given matches."""

    def __init__(self, matches: list[Match]) -> None:
        super().__init__()
        self.matches = matches

    def __call__(self, *_: object) -> list[Match]:
        return self.matches


def focal(logits: Tensor, truth: Tensor) -> float:
    """Mean over pixels of -alpha_t (1 - p_t)^2 log p_t, with alpha 0.25 for pixels of the mask."""
    total = 0.0
    for x, inside in zip(logits.flatten().tolist(), truth.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        right, alpha = (p, 0.25) if inside else (1 - p, 0.75)
        total -= alpha * (1 - right) ** 2 * math.log(right)
    return total / logits.numel()


def dice(logits: Tensor, truth: Tensor) -> float:
    """1 - (2 |P n T| + 1) / (|P| + |T| + 1)."""
    both = inside = 0.0
    for x, flag in zip(logits.flatten().tolist(), truth.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        both, inside = both + p * flag, inside + p + flag
    return 1 - (2 * both + 1) / (inside + 1)


def test_losses_equal_loop_over_pixels() -> None:
    p, targets = predictions(), [target(2), target(3, 1)]
    matches = [Match(torch.tensor([1, 4]), torch.tensor([1, 0])),
               Match(torch.tensor([0, 2, 3]), torch.tensor([2, 0, 1]))]  # fmt: skip
    criterion = AllPixelsCriterion(Fixed(matches), LossWeights(1, 20, 1), no_object_weight=0.1)
    loss = criterion([p], targets, seeded(), [0, 1])[0]
    mask, overlap = 0.0, 0.0
    for b in range(2):
        full = F.interpolate(p.mask_logits[b : b + 1], (16, 24), mode="bilinear")[0]
        for q, j in zip(matches[b].queries.tolist(), matches[b].targets.tolist(), strict=True):
            mask += focal(full[q], targets[b].masks[j]) / 5
            overlap += dice(full[q], targets[b].masks[j]) / 5
    torch.testing.assert_close(loss.mask, torch.tensor(20 * mask))
    torch.testing.assert_close(loss.dice, torch.tensor(overlap))
    chosen = p.class_logits.log_softmax(-1)
    wanted = [[CLASSES] * QUERIES for _ in range(2)]
    for b, match in enumerate(matches):
        for q, j in zip(match.queries.tolist(), match.targets.tolist(), strict=True):
            wanted[b][q] = int(targets[b].labels[j])
    weights = {k: 0.1 if k == CLASSES else 1.0 for k in range(CLASSES + 1)}
    pairs = list(product(range(2), range(QUERIES)))
    ce = -sum(weights[wanted[b][q]] * chosen[b, q, wanted[b][q]] for b, q in pairs)
    torch.testing.assert_close(loss.classification, ce / sum(weights[wanted[b][q]] for b, q in pairs))


def test_costs_equal_loop_over_cells() -> None:
    p, t = predictions(1), target(3)
    costs = AllPixelsMatcher(1, 20, 1).costs(p.class_logits[0], p.mask_logits[0], t, seeded())
    for q, j in product(range(QUERIES), range(3)):
        truth = torch.stack([torch.stack([t.masks[j, 4 * y, 4 * x] for x in range(6)]) for y in range(4)])
        torch.testing.assert_close(
            float(costs.mask[q, j]), focal(p.mask_logits[0, q], truth), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            float(costs.dice[q, j]), dice(p.mask_logits[0, q], truth), rtol=1e-4, atol=1e-6
        )
        own = -float(p.class_logits[0, q].detach().softmax(0)[t.labels[j]])
        torch.testing.assert_close(float(costs.classification[q, j]), own, rtol=1e-4, atol=1e-6)


def test_images_without_targets_have_gradients() -> None:
    p = predictions()
    criterion = AllPixelsCriterion(AllPixelsMatcher(1, 20, 1), LossWeights(1, 20, 1))
    for counts in ((0, 2), (0, 0)):
        loss = criterion([p], [target(n) for n in counts], seeded(), [0, 1])[0]
        assert (loss.mask.item() == 0) is (counts == (0, 0))
        p.mask_logits.grad = None
        (loss.classification + loss.mask + loss.dice).backward()
        assert p.mask_logits.grad is not None
        assert not p.mask_logits.grad[0].any()


def test_perfect_masks_cost_nothing() -> None:
    p, t = predictions(1), target(1)
    logits = torch.where(t.masks[0, ::4, ::4], 50.0, -50.0).expand(1, QUERIES, 4, 6)
    costs = AllPixelsMatcher().costs(p.class_logits[0], logits[0], t, seeded())
    assert costs.mask.abs().max() < 1e-6
    assert costs.dice.abs().max() < 1e-6
