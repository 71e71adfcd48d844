"""Means of features under masks."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_mean(features: Tensor, mask_logits: Tensor) -> Tensor:
    """Mean features [B, Q, C] under soft masks: features [B, C, H, W] and logits [B, Q, H, W]."""
    with torch.autocast(features.device.type, enabled=False):
        exact, logits = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (features, mask_logits))
        weights = logits.sigmoid()
        shares = weights / (weights.sum(dim=(2, 3), keepdim=True) + 1e-8)
        return torch.einsum("bchw,bqhw->bqc", exact, shares).to(features.dtype)


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature under each mask; zero for an empty one.

    Args:
        features: [B, C, H, W].
        masks: bool [B, Q, H, W].

    Returns:
        [B, Q, C] in the precision of ``features``.
    """
    # float16 can represent neither the size of a large mask nor its inverse
    with torch.autocast(features.device.type, enabled=False):
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        weights = masks.to(exact.dtype)
        total = weights.sum(dim=(2, 3), keepdim=True) + 1e-8
        return torch.einsum("bchw,bqhw->bqc", exact, weights / total).to(features.dtype)
