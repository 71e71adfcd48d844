"""Projection of the frozen features to a feature pyramid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones.contract import Tap
from odise_pl.structures import Size

STRIDES = (4, 8, 16, 32)
_GROUPS = 32  # of GroupNorm
_REDUCTION = 4  # of the width within bottlenecks


class NormedConv(nn.Conv2d):
    """A convolution without bias, then GroupNorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(_GROUPS, out_channels)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Bottleneck(nn.Module):
    """Residual 1x1, 3x3, 1x1 bottleneck; the shortcut is a normed 1x1 convolution if the widths differ."""

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        self.shortcut = (
            NormedConv(in_channels, out_channels) if in_channels != out_channels else nn.Identity()
        )
        self.conv1 = NormedConv(in_channels, width)
        self.conv2 = NormedConv(width, width, 3)
        self.conv3 = NormedConv(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class Pyramid(nn.Module, ABC):
    """Trained modules that make a pyramid of the maps of frozen networks.

    Attributes:
        channels: widths of s2, s3, s4, s5.
        maps: number of maps that it takes.
        strides: of s2, s3, s4, s5.
    """

    channels: list[int]
    maps: int
    strides: Sequence[int] = STRIDES

    @abstractmethod
    def forward(self, features: Sequence[Tensor], size: Size) -> list[Tensor]:
        """Project the maps and sum those of a stride.

        Args:
            features: one map per tap.
            size: of the windows in image pixels, before they were resized for the frozen network.

        Returns:
            [N, channels, height / s, width / s] for each stride s.
        """


class FeaturePyramid(Pyramid):
    """Projects every tap by its own bottleneck and sums taps of equal stride: s2, s3, s4, s5.

    Args:
        taps: of the input features; strides are clamped to 4..32.
        channels: width of the pyramid; the bottlenecks are a quarter as wide.
    """

    def __init__(self, taps: Sequence[Tap], channels: int = 512) -> None:
        super().__init__()
        self.tap_strides = [min(max(tap.stride, STRIDES[0]), STRIDES[-1]) for tap in taps]
        self.pooled = [tap.pooled for tap in taps]
        missing = sorted(set(STRIDES) - set(self.tap_strides))
        if missing:
            raise SettingError(
                f"the backbone has no feature of stride {missing}: a pyramid needs all of {STRIDES}; "
                "choose another network"
            )
        if channels % (_GROUPS * _REDUCTION):
            raise SettingError(f"backbone.channels={channels} must be a multiple of {_GROUPS * _REDUCTION}")
        self.channels, self.maps = [channels] * len(STRIDES), len(taps)
        self.projections = nn.ModuleList(
            Bottleneck(tap.channels, channels, channels // _REDUCTION) for tap in taps
        )

    def forward(self, features: Sequence[Tensor], size: Size) -> list[Tensor]:
        """See :class:`Pyramid`."""
        levels: dict[int, Tensor] = {}
        kinds = zip(self.tap_strides, self.pooled, strict=True)
        for feature, (stride, pooled), projection in zip(features, kinds, self.projections, strict=True):
            projected = projection(_resize(feature, (size[0] // stride, size[1] // stride), pooled))
            levels[stride] = levels[stride] + projected if stride in levels else projected
        return [levels[stride] for stride in STRIDES]


class SimplePyramid(FeaturePyramid):
    """ViTDet's simple feature pyramid of one map (arXiv 2203.16527), then the projections.

    Transposed convolutions double the map until it has strides 4 and 8, pooling halves it.

    Args:
        tap: the map, of any stride.
        channels: width of the pyramid.
    """

    def __init__(self, tap: Tap, channels: int = 512) -> None:
        doublings = [round(math.log2(tap.stride / stride)) for stride in STRIDES]
        widths = [tap.channels >> max(n, 0) for n in doublings]
        levels = zip(STRIDES, widths, strict=True)
        super().__init__([Tap(f"s{s}", width, s, pooled=True) for s, width in levels], channels)
        self.maps = 1
        self.scales = nn.ModuleList(_scale(tap.channels, n) for n in doublings)

    def forward(self, features: Sequence[Tensor], size: Size) -> list[Tensor]:
        """As in :class:`FeaturePyramid`, from one map [N, C, h, w]."""
        return super().forward([scale(features[0]) for scale in self.scales], size)


class PlainPyramid(Pyramid):
    """The maps of four stages as they are, of their own widths: nothing is trained.

    Args:
        taps: four, from stride 4 on; strides of 4, 8, 16 and 32, or smaller ones of dilated stages.

    Raises:
        SettingError: there are other taps.
    """

    def __init__(self, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.strides = [tap.stride for tap in taps]
        if len(taps) != len(STRIDES) or any(a > b for a, b in zip(self.strides, STRIDES, strict=True)):
            raise SettingError(
                "backbone.channels=null needs a network with stages of strides 4, 8, 16 and 32"
            )
        self.channels, self.maps = [tap.channels for tap in taps], len(STRIDES)

    def forward(self, features: Sequence[Tensor], size: Size) -> list[Tensor]:
        """See :class:`Pyramid`."""
        return [
            _resize(x, (size[0] // s, size[1] // s), True)
            for x, s in zip(features, self.strides, strict=True)
        ]


class JointPyramid(Pyramid):
    """The sum of the pyramids of several networks.

    Args:
        parts: the pyramids, of one width.
    """

    def __init__(self, parts: Sequence[Pyramid]) -> None:
        super().__init__()
        self.channels, self.maps = parts[0].channels, sum(part.maps for part in parts)
        self.counts = [part.maps for part in parts]
        self.parts = nn.ModuleList(parts)

    def forward(self, features: Sequence[Tensor], size: Size) -> list[Tensor]:
        """See :class:`Pyramid`; the maps of the first network come first."""
        maps = iter(features)
        pyramids = [
            part([*islice(maps, count)], size) for part, count in zip(self.parts, self.counts, strict=True)
        ]
        return [sum(levels[1:], levels[0]) for levels in zip(*pyramids, strict=True)]


def _scale(channels: int, doublings: int) -> nn.Module:
    """Doubles the sides of a map and halves its width so many times; negative: pools."""
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings)
    layers: list[nn.Module] = []
    for i in range(doublings):
        if i:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels := channels // 2, 2, 2))
    return nn.Sequential(*layers)


def _resize(feature: Tensor, size: Size, pooled: bool) -> Tensor:
    if pooled and size[1] < feature.shape[-1]:
        return F.adaptive_avg_pool2d(feature, size)
    return F.interpolate(feature, size)
