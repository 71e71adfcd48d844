"""Cutting images into square windows and merging window features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Window:
    """A square cut: rows ``top`` to ``top + side``, columns ``left`` to ``left + side``, in pixels."""

    top: int
    left: int
    side: int


def plan_windows(height: int, width: int, window: int | None, per_side: int = 1) -> list[Window]:
    """Adjacent windows row by row; the last of a row or column is shifted to fit.

    With the published side of 512, 1024x1024 pixels have 4 windows, 1024x1344 have 6, 1024x2560 have 10.

    Args:
        height, width: of the padded image, in pixels.
        window: largest side; None: the shorter side of the image.
        per_side: windows that start within a side; 2: each covers half of the next.
    """
    side = min(height, width, window or height)
    stride = max(1, side // per_side)
    tops, lefts = (_starts(length, side, stride) for length in (height, width))
    return [Window(top, left, side) for top in tops for left in lefts]


def _starts(length: int, side: int, stride: int) -> list[int]:
    return sorted({min(start, length - side) for start in range(0, length - side + stride, stride)})


def cut_windows(images: Tensor, windows: Sequence[Window], size: int) -> Tensor:
    """Windows of all images, resized (bicubic): [W * B, 3, size, size], all images of a window together."""
    cuts = torch.cat([images[..., w.top : w.top + w.side, w.left : w.left + w.side] for w in windows])
    return resize_square(cuts, size)


def resize_square(images: Tensor, size: int) -> Tensor:
    """Images [N, 3, H, W] resized (bicubic) to [N, 3, size, size]."""
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False)


def merge_windows(parts: Tensor, windows: Sequence[Window], size: tuple[int, int], stride: int) -> Tensor:
    """Merge features of windows; overlapping windows are averaged.

    Args:
        parts: [W * B, C, side / stride, side / stride] in the order of :func:`cut_windows`.
        windows: from :func:`plan_windows`.
        size: height and width of the images in pixels.
        stride: pixels per feature cell.

    Returns:
        [B, C, height / stride, width / stride].
    """
    chunks = parts.chunk(len(windows))
    height, width = size[0] // stride, size[1] // stride
    merged = parts.new_zeros(chunks[0].shape[0], parts.shape[1], height, width)
    count = parts.new_zeros(1, 1, height, width)
    for window, chunk in zip(windows, chunks, strict=True):
        side = window.side // stride
        rows = slice(window.top // stride, window.top // stride + side)
        columns = slice(window.left // stride, window.left // stride + side)
        merged[..., rows, columns] += chunk
        count[..., rows, columns] += 1
    return merged / count
