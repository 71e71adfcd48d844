"""Means of features under masks."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature under each mask; zero for an empty one.

    Args:
        features: [B, C, H, W].
        masks: bool [B, Q, H, W].

    Returns:
        [B, Q, C].
    """
    weights = masks.to(features.dtype)
    total = weights.sum(dim=(2, 3)).unsqueeze(2) + 1e-8
    return torch.einsum("bchw,bqhw->bqc", features, weights / total.unsqueeze(3))
