"""Fixed sine position encodings (DETR, arXiv 2005.12872, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encoding of every cell of a map: float32 [channels, height, width], rows first."""
    half = channels // 2
    frequency = 10000 ** (2 * torch.arange(half // 2, device=device, dtype=torch.float32) / half)

    def encode(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6)
        angle = 2 * math.pi * position[:, None] / frequency
        return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).permute(2, 0, 1)
