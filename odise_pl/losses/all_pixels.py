"""MaskFormer's losses (arXiv 2107.06278, appendix A): focal and dice loss of all pixels, not of points.

The settings of points that the classes inherit are unused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from odise_pl.losses.criterion import SetCriterion
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.losses.point_losses import paired_dice, pairwise_dice
from odise_pl.models.ops.points import Uniform

ALPHA, GAMMA = 0.25, 2.0


class AllPixelsMatcher(HungarianMatcher):
    """Compares masks at every cell of the predicted ones; true masks are resized to the nearest pixel."""

    def mask_costs(self, logits: Tensor, masks: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        """See :meth:`HungarianMatcher.mask_costs`."""
        truth = F.interpolate(masks[:, None].to(logits.dtype), logits.shape[-2:]).flatten(1)
        flat = logits.flatten(1)
        return pairwise_focal(flat, truth), pairwise_dice(flat, truth)


class AllPixelsCriterion(SetCriterion):
    """Resizes predicted masks (bilinear) to the canvas; every pixel counts."""

    def paired_losses(self, logits: Tensor, masks: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        """See :meth:`SetCriterion.paired_losses`."""
        full = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
        truth = masks.to(full.dtype).flatten(1)
        return paired_focal(full, truth), paired_dice(full, truth)


def paired_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean focal loss (arXiv 1708.02002) of each mask: [N, P] and [N, P] to [N]."""
    loss: Tensor = sigmoid_focal_loss(logits, targets, ALPHA, GAMMA)
    return loss.mean(1)


def pairwise_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean focal loss of every pair: [Q, P] and [N, P] to [Q, N]."""
    negative, positive = (
        sigmoid_focal_loss(logits, torch.full_like(logits, value), ALPHA, GAMMA) for value in (0, 1)
    )
    costs: Tensor = positive @ targets.T + negative @ (1 - targets).T
    return costs / logits.shape[1]
