"""3x3 convolutions with a quarter of the multiplications, for frozen networks on CPUs.

Winograd's F(4x4, 3x3), section 4 of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks". Each
linear transform of tiles is a product with one matrix for both sides of a tile, which libraries compute much
faster than PyTorch adds strided tensors.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial.polynomial import polyfromroots
from torch import Tensor, nn
from torch.nn import functional as F

_TILE, _WINDOW = 4, 6  # sides of a tile of the output, and of the input that it depends on
# Interpolation points, besides infinity; the usual 0, 1, -1, 2, -2 double the rounding error.
_POINTS = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
_TILES = 256  # transformed together: enough to use each transformed weight often
_LEAST_CHANNELS, _LEAST_PIXELS = 128, 1024  # below, the transforms take longer than they save


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Toom-Cook matrices of kernels [36, 9], windows [36, 36] and tiles [16, 36] in float64."""
    points = np.array(_POINTS)
    others = [np.delete(points, i) for i in range(len(points))]
    scale = [np.prod(point - other) for point, other in zip(points, others, strict=True)]
    kernel = np.vstack([np.vander(points, 3, increasing=True) / np.c_[scale], [0, 0, 1]])
    window = np.vstack([*(np.append(polyfromroots(other), 0) for other in others), polyfromroots(points)])
    tile = np.vstack([np.vander(points, _TILE, increasing=True), [0, 0, 0, 1]]).T
    on_kernels, on_windows, on_tiles = (torch.from_numpy(np.kron(m, m)) for m in (kernel, window, tile))
    return on_kernels, on_windows, on_tiles


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` without gradients.

    In float32, the rounding error is about five times that of PyTorch (1e-6 of the values, root mean square).

    Args:
        x: [N, C, H, W].
        weight: [D, C, 3, 3].
        bias: [D].

    Returns:
        [N, D, H, W].
    """
    height, width = x.shape[2:]
    down, across = -(-height // _TILE), -(-width // _TILE)
    on_kernels, on_windows, on_tiles = (matrix.to(x.dtype) for matrix in _transforms())
    kernels = (on_kernels @ weight.reshape(-1, 9).T).unflatten(1, weight.shape[:2])
    result = x.new_empty(len(x), len(weight), down * _TILE, across * _TILE)
    step = -(-_TILES // across) * _TILE
    for image, maps in zip(x, result, strict=True):
        for top, band in zip(range(0, height, step), maps.split(step, dim=1), strict=True):
            below = top + band.shape[1] - height
            # negative padding crops
            padded = F.pad(image, (1, 1 + maps.shape[2] - width, 1 - top, 1 + below))
            windows = padded.unfold(1, _WINDOW, _TILE).unfold(2, _WINDOW, _TILE).permute(0, 3, 4, 1, 2)
            transformed = on_windows @ windows.reshape(len(image), _WINDOW**2, -1)
            products = kernels.bmm(transformed.transpose(0, 1))
            tiles = (on_tiles @ products.flatten(1)).view(_TILE, _TILE, len(maps), -1, across)
            places = band.unflatten(2, (across, _TILE)).unflatten(1, (-1, _TILE))
            places.copy_(tiles.permute(2, 3, 0, 4, 1))
            if bias is not None:
                band += bias[:, None, None]
    return result[..., :height, :width].contiguous()


class _Winograd(torch.autograd.Function):
    """With the gradient of the input, which is a convolution with the turned kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return winograd(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _Winograd.apply(*gradients, weight.flip(2, 3).transpose(0, 1), None), None, None


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that uses :func:`winograd` where it pays: frozen, float32, on a CPU, and large."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Winograd.apply(x, self.weight, self.bias) if self._pays(x) else super().forward(x)
        return found

    def _pays(self, x: Tensor) -> bool:
        large = min(self.weight.shape[:2]) >= _LEAST_CHANNELS and x.shape[2] * x.shape[3] >= _LEAST_PIXELS
        plain = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
        return eager and plain and large and not self.weight.requires_grad


def use_winograd(network: nn.Module) -> None:
    """Replace the 3x3 convolutions inside a network by :class:`Conv3x3`; their names and weights stay."""
    for name, old in list(network.named_modules()):
        if type(old) is not nn.Conv2d or (old.kernel_size, old.stride, old.groups) != ((3, 3), (1, 1), 1):
            continue
        if (old.padding, old.dilation, old.padding_mode) == ((1, 1), (1, 1), "zeros"):
            new = Conv3x3(old.in_channels, old.out_channels, 3, padding=1, device="meta")
            new.weight, new.bias = old.weight, old.bias
            network.set_submodule(name, new)
