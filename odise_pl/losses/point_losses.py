"""Mask losses at sampled points, pairwise (for matching) and paired (for training).

Mask2Former (arXiv 2112.01527), section 3.2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.ops.points import point_sample


def paired_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of each mask: [N, P] and [N, P] to [N]."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def paired_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask (V-Net, arXiv 1606.04797; numerator and denominator plus 1): [N, P] to [N]."""
    p = logits.sigmoid()
    return 1 - (2 * (p * targets).sum(1) + 1) / (p.sum(1) + targets.sum(1) + 1)


def pairwise_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of every pair: [Q, P] and [N, P] to [Q, N]."""
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return (positive @ targets.T + negative @ (1 - targets).T) / logits.shape[1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every pair: [Q, P] and [N, P] to [Q, N]."""
    p = logits.sigmoid()
    return 1 - (2 * p @ targets.T + 1) / (p.sum(1)[:, None] + targets.sum(1)[None] + 1)


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Float values of bool masks [N, H, W] at points [N or 1, P, 2]: [N, P]."""
    return point_sample(masks[:, None].to(torch.float32), points).squeeze(1)
