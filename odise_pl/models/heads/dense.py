"""Heads that embed every cell of a map, which are named without masks.

The modules of :data:`DENSE` map the pyramid s2..s5 to one map [B, channels, h, w]. Group norms stand in for
the published batch norms, whose statistics would depend on how many images a device sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.models.heads.layers import ConvNorm, ScaledEmbedding
from odise_pl.models.heads.mask_decoder import DecoderOutput
from odise_pl.models.heads.maskformer import TopDown


class ResidualUnit(nn.Sequential):
    """Two convolutions, each after a ReLU, beside a shortcut: [B, C, h, w] to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(*(part for _ in "12" for part in (nn.ReLU(), ConvNorm(channels, channels, 3))))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = super().forward(x)
        return x + inner


class DPT(nn.Module):
    """The fusion of DPT (arXiv 2103.13413, section 3.1), from coarse to fine; its map has stride 2.

    Args:
        in_channels: widths of s2, s3, s4, s5.
        channels: width of the result.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in reversed(in_channels)
        )
        self.skips = nn.ModuleList(ResidualUnit(channels) for _ in in_channels[1:])
        self.units = nn.ModuleList(ResidualUnit(channels) for _ in in_channels)
        self.outs = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in in_channels)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        coarsest, *finer = (lateral(x) for lateral, x in zip(self.laterals, reversed(pyramid), strict=True))
        x, last = coarsest, (2 * pyramid[0].shape[2], 2 * pyramid[0].shape[3])
        for i, (unit, out) in enumerate(zip(self.units, self.outs, strict=True)):
            if i:
                x = x + self.skips[i - 1](finer[i - 1])
            size = finer[i].shape[-2:] if i < len(finer) else last
            x = out(F.interpolate(unit(x), size, mode="bilinear", align_corners=True))
        return x


class ASPP(nn.Module):
    """The sum of dilated convolutions of the last map (DeepLabV2, arXiv 1606.00915, section 3.2)."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for rate in (6, 12, 18, 24):
            conv = nn.Conv2d(in_channels[-1], channels, 3, padding=rate, dilation=rate)
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            self.convs.append(conv)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        return torch.stack([conv(pyramid[-1]) for conv in self.convs]).sum(0)


class DeepLab(nn.Module):
    """Dilated convolutions and the mean of the last map, then a decoder with s2 (arXiv 1802.02611)."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256, low: int = 48) -> None:
        super().__init__()
        finest, coarsest = in_channels[0], in_channels[-1]
        self.branches = nn.ModuleList(
            ConvNorm(coarsest, channels, kernel, relu=True, dilation=rate)
            for kernel, rate in ((1, 1), (3, 6), (3, 12), (3, 18))
        )
        self.image = nn.Conv2d(coarsest, channels, 1)  # a norm of one cell would erase it
        self.join = nn.Sequential(ConvNorm(5 * channels, channels, relu=True), nn.Dropout(0.5))
        self.low = ConvNorm(finest, low, relu=True)
        widths = (channels + low, channels)
        self.decoder = nn.Sequential(*(ConvNorm(width, channels, 3, relu=True) for width in widths))

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        fine, coarse = pyramid[0], pyramid[-1]
        image = self.image(coarse.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *coarse.shape[-2:])
        x = self.join(torch.cat([*(branch(coarse) for branch in self.branches), image], dim=1))
        x = F.interpolate(x, fine.shape[-2:], mode="bilinear", align_corners=False)
        decoded: Tensor = self.decoder(torch.cat([x, self.low(fine)], dim=1))
        return decoded


DENSE: dict[str, type[TopDown | DPT | ASPP | DeepLab]] = {
    "fpn": TopDown,
    "dpt": DPT,
    "aspp": ASPP,
    "deeplab": DeepLab,
}


class PixelEmbedding(ScaledEmbedding):
    """Embeds every cell of a map in the space of the texts.

    Args:
        channels: width of the map.
        embed_dim: width of the texts.
        logit_scale: fixed factor of the similarities; None: it is trained.
    """

    object_head = None

    def __init__(self, channels: int, embed_dim: int, logit_scale: float | None) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(channels, embed_dim, 1)
        self._add_scale(logit_scale)

    def forward(self, features: Tensor) -> list[DecoderOutput]:
        """One output for a map [B, channels, h, w], without masks: its cells and their embeddings."""
        maps = self.embedding(features)
        return [DecoderOutput(maps[:, :0], maps.flatten(2).mT, features.flatten(2).mT, self.scale)]
