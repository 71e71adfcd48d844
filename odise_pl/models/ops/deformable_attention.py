"""Multi-scale deformable attention in plain PyTorch (Deformable DETR, arXiv 2010.04159, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sample_and_mix(
    values: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum of values sampled at locations, per head.

    Args:
        values: [B, L, heads, D] with L = sum of H * W over the levels.
        shapes: (H, W) of each level.
        locations: [B, Q, heads, levels, points, 2] as (x, y) in 0..1.
        weights: [B, Q, heads, levels, points].

    Returns:
        [B, Q, heads * D] in the precision of ``values``.
    """
    batch, _, heads, depth = values.shape
    # on a map of 128 cells, bfloat16 would shift locations by a quarter of a cell
    dtype = torch.promote_types(values.dtype, locations.dtype)
    queries, points = locations.shape[1], locations.shape[4]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    mix = weights.permute(3, 0, 2, 1, 4).reshape(len(shapes), batch * heads, 1, queries, points)
    maps = values.split([h * w for h, w in shapes], dim=1)
    total = values.new_zeros(())
    for level, (height, width) in enumerate(shapes):
        grid_map = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, depth, height, width)
        sampled = F.grid_sample(grid_map.to(dtype), grids[level].to(dtype), align_corners=False)
        total = total + (sampled * mix[level].to(dtype)).sum(-1)
    return total.to(values.dtype).view(batch, heads * depth, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Attention to a few learned points around a reference point on every level.

    Args:
        channels: width of queries and values.
        levels: number of feature maps.
        heads: attention heads.
        points: sampled points per head and level.
    """

    def __init__(self, channels: int = 256, levels: int = 3, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._reset()

    def _reset(self) -> None:
        """Initial offsets: a direction per head, increasing distance per point; equal weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        distance = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        offsets = direction.view(self.heads, 1, 1, 2) * distance
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(
        self, queries: Tensor, reference: Tensor, memory: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attend.

        Args:
            queries: [B, Q, channels].
            reference: [Q, 2] as (x, y) in 0..1.
            memory: [B, L, channels], all levels concatenated.
            shapes: (H, W) of each level.

        Returns:
            [B, Q, channels].
        """
        split = (self.heads, self.levels, self.points)
        values = self.value_proj(memory).unflatten(2, (self.heads, -1))
        offsets = self.sampling_offsets(queries).unflatten(2, (*split, 2))
        weights = (
            self.attention_weights(queries).unflatten(2, (self.heads, -1)).softmax(-1).unflatten(3, split[1:])
        )
        scale = torch.tensor([(w, h) for h, w in shapes], device=queries.device, dtype=reference.dtype)
        locations = reference[None, :, None, None, None] + offsets / scale[:, None]
        return self.output_proj(sample_and_mix(values, shapes, locations, weights))


def reference_points(shapes: Sequence[tuple[int, int]], device: torch.device | None = None) -> Tensor:
    """Centres of all cells of all levels: float32 [L, 2] as (x, y) in 0..1."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        centres.append(grid.flatten(0, 1))
    return torch.cat(centres)
