"""Layers of pixel decoder and mask decoder."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """``layers`` linear layers with ReLU between them."""

    def __init__(self, in_features: int, hidden: int, out_features: int, layers: int = 3) -> None:
        super().__init__()
        widths = [in_features, *[hidden] * (layers - 1), out_features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            x = F.relu(layer(x))
        return last(x)


class ScaledEmbedding(nn.Module):
    """Base of embeddings that are compared with names.

    Attributes:
        log_scale: logarithm of the factor of cosine similarities.
    """

    log_scale: nn.Parameter

    def _add_scale(self, fixed: float | None = None) -> None:
        """Add the factor, after the other parts: ``fixed``, or trained from CLIP's start."""
        start = torch.tensor(math.log(fixed or 1 / 0.07))
        self.log_scale = nn.Parameter(start, requires_grad=fixed is None)

    @property
    def scale(self) -> Tensor:
        """Factor of cosine similarities, at most 100."""
        return self.log_scale.exp().clamp(max=100)


class ConvNorm(nn.Module):
    """Convolution, GroupNorm with 32 groups (or as many as divide the width), optional ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        bias: bool = False,
        relu: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, 1, padding, dilation, bias=bias)
        self.norm = nn.GroupNorm(math.gcd(32, out_channels), out_channels)
        self.relu = relu
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x
