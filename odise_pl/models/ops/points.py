"""Sampling of maps at points (PointRend, arXiv 1912.08193, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Uniform random numbers in 0..1 of a shape, e.g. ``lambda *size: torch.rand(*size, generator=g)``.
Uniform = Callable[..., Tensor]


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values at points.

    Args:
        maps: [N, C, H, W].
        points: [N, P, 2] as (x, y), 0..1 from border to border; [1, P, 2] for all maps.

    Returns:
        [N, C, P]; zero outside the map.
    """
    points = points.expand(len(maps), -1, -1)
    values = F.grid_sample(maps, 2 * points.unsqueeze(2).to(maps.dtype) - 1, align_corners=False)
    return values.squeeze(3)


@torch.no_grad()
def uncertain_points(
    logits: Tensor, count: int, uniform: Uniform, oversample: float = 3.0, importance: float = 0.75
) -> Tensor:
    """Points where masks are most uncertain, and random points.

    Args:
        logits: [N, 1, H, W] mask logits.
        count: points per mask.
        uniform: source of random numbers.
        oversample: candidates per point.
        importance: fraction of points that are the most uncertain candidates.

    Returns:
        [N, count, 2] as (x, y) in 0..1.
    """
    masks, device = len(logits), logits.device
    candidates = uniform(masks, int(count * oversample), 2).to(device)
    uncertainty = -point_sample(logits, candidates).squeeze(1).abs()
    certain = int(count * importance)
    best = uncertainty.topk(certain, dim=1).indices
    chosen = candidates.gather(1, best.unsqueeze(2).expand(-1, -1, 2))
    return torch.cat([chosen, uniform(masks, count - certain, 2).to(device)], dim=1)
