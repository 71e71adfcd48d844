"""Means of features under masks."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature under each mask; zero for an empty one.

    Args:
        features: [B, C, H, W].
        masks: [B, Q, H, W], bool or weights in 0..1.

    Returns:
        [B, Q, C] in the precision of ``features``.
    """
    # float16 can represent neither the size of a large mask nor its inverse
    with torch.autocast(features.device.type, enabled=False):
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        weights = masks.to(exact.dtype)
        total = weights.sum(dim=(2, 3), keepdim=True) + 1e-8
        return torch.einsum("bchw,bqhw->bqc", exact, weights / total).to(features.dtype)
