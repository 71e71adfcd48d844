"""The pixel decoder: a deformable encoder over strides 32, 16, 8 and one FPN step to stride 4.

Mask2Former (arXiv 2112.01527), section 3.2.2 and appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.models.heads.layers import ConvNorm
from odise_pl.models.ops.deformable_attention import DeformableAttention, reference_points
from odise_pl.models.ops.position import sine_positions


@dataclass(frozen=True)
class PixelFeatures:
    """Input of the mask decoder.

    Attributes:
        mask_features: [B, mask_channels, H/4, W/4].
        levels: [B, channels, H/s, W/s] for s in 32, 16, 8; MaskFormer's for 32 alone.
        region_features: [B, channels, H/4, W/4], from which masks are embedded; None: from others.
    """

    mask_features: Tensor
    levels: list[Tensor]
    region_features: Tensor | None = None


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward net, each with residual and post-norm."""

    def __init__(self, channels: int, feedforward: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, levels, heads, points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        x = self.norm1(x + self.attention(x + position, reference, x, shapes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class PixelDecoder(nn.Module):
    """Converts the pyramid s2..s5 to :class:`PixelFeatures`.

    Args:
        in_channels: widths of s2, s3, s4, s5.
        channels: width of the encoder and of the levels.
        mask_channels: width of the mask features.
        feedforward: width of the encoder's feed-forward nets.
        layers: encoder layers.
        heads: attention heads.
        points: sampled points per head and level.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (512,) * 4,
        channels: int = 256,
        mask_channels: int = 256,
        feedforward: int = 1024,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
    ) -> None:
        super().__init__()
        finest, *coarse = in_channels
        levels = len(coarse)
        self.input_proj = nn.ModuleList(ConvNorm(width, channels, bias=True) for width in reversed(coarse))
        self.level_embed = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList(
            EncoderLayer(channels, feedforward, levels, heads, points) for _ in range(layers)
        )
        for name, parameter in self.layers.named_parameters():
            if parameter.dim() > 1 and "attention" not in name:
                nn.init.xavier_uniform_(parameter)
        self.lateral = ConvNorm(finest, channels)
        self.smooth = ConvNorm(channels, channels, 3, relu=True)
        self.mask_features = nn.Conv2d(channels, mask_channels, 1)
        nn.init.xavier_uniform_(self.mask_features.weight)
        assert self.mask_features.bias is not None
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, pyramid: Sequence[Tensor]) -> PixelFeatures:
        """Args: s2, s3, s4, s5, each [B, C, H/s, W/s] of its width C."""
        finest, *coarse = pyramid
        levels = self._encode([proj(x) for proj, x in zip(self.input_proj, reversed(coarse), strict=True)])
        up = F.interpolate(levels[-1], finest.shape[-2:], mode="bilinear", align_corners=False)
        return PixelFeatures(self.mask_features(self.smooth(self.lateral(finest) + up)), levels)

    def _encode(self, maps: list[Tensor]) -> list[Tensor]:
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        device = maps[0].device
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        channels = x.shape[2]
        position = torch.cat(
            [
                sine_positions(h, w, channels, device).flatten(1).T + embed
                for (h, w), embed in zip(shapes, self.level_embed, strict=True)
            ]
        )
        reference = reference_points(shapes, device)
        for layer in self.layers:
            x = layer(x, position, reference, shapes)
        parts = x.transpose(1, 2).split([h * w for h, w in shapes], dim=2)
        return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
