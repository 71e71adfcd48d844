"""Mask logits at image size in bands of rows: whole masks of large images would take gigabytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from odise_pl.structures import Size

# Pixels of a band: on CPUs, as many as fit the cache.
_PIXELS = {"cpu": 1 << 17}
_PIXELS_ELSEWHERE = 1 << 22
_VECTOR = 64

# Returns the logits [rows, W] of the query with an index.
Band = Callable[[int], Tensor]


class Masks:
    """Mask logits [Q, H, W] of one image in memory; ``size`` is (H, W), ``queries`` is Q."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
        self.size: Size = (logits.shape[1], logits.shape[2])
        self.queries, self.device = len(logits), logits.device

    def bands(self) -> Iterator[tuple[slice, Band]]:
        """All rows in order, band by band."""
        height, width = self.size
        # bands of whole SIMD vectors: CPU kernels round the remainder differently
        unit = _VECTOR // math.gcd(_VECTOR, width)
        pixels = _PIXELS.get(self.device.type, _PIXELS_ELSEWHERE)
        step = max(1, pixels // (unit * width)) * unit
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            yield rows, self._band(rows)

    def _band(self, rows: slice) -> Band:
        return lambda query: self._logits[query, rows]


class ResizedMasks(Masks):
    """Mask logits of a padded image, resized band by band.

    Equal to ``inference.resize_masks``, which documents the arguments; on CPUs bit for bit, except for maps
    so small that PyTorch uses another kernel.
    """

    def __init__(self, mask_logits: Tensor, canvas: Size, valid: Size, output: Size) -> None:
        super().__init__(mask_logits)
        self.size = output
        height, width = mask_logits.shape[1:]
        self._canvas_rows, self._output_rows = _Taps.of(height, canvas[0]), _Taps.of(valid[0], output[0])
        canvas_columns, _ = _Taps.of(width, canvas[1]).part(slice(valid[1]))
        self._columns = [taps.to(mask_logits) for taps in (canvas_columns, _Taps.of(valid[1], output[1]))]

    def _band(self, rows: slice) -> Band:
        output, on_canvas = self._output_rows.part(rows)
        canvas, source = self._canvas_rows.part(on_canvas)
        steps = [taps.to(self._logits) for taps in (canvas, output)]

        def band(query: int) -> Tensor:
            logits = self._logits[query, source]
            for columns, rows in zip(self._columns, steps, strict=True):
                logits = rows.resize(columns.resize(logits, 1), 0)
            return logits

        return band


@dataclass(frozen=True)
class _Taps:
    """Linear interpolation along one side: the two source cells of each target cell.

    Attributes:
        first, second: source cells, int64 [N].
        share: weight of the second, [N].
    """

    first: Tensor
    second: Tensor
    share: Tensor

    @classmethod
    def of(cls, old: int, new: int) -> _Taps:
        """Resize ``old`` cells to ``new`` as PyTorch does, in single precision."""
        place = (torch.tensor(float(old)) / new * (torch.arange(new) + 0.5) - 0.5).clamp(min=0)
        first = place.long().clamp(max=old - 1)
        return cls(first, (first + 1).clamp(max=old - 1), (place - first).clamp(0, 1))

    def part(self, cells: slice) -> tuple[_Taps, slice]:
        """Taps of some target cells, relative to the source cells that they read, and these cells."""
        first, second = self.first[cells], self.second[cells]
        source = slice(int(first[0]), int(second[-1]) + 1)
        return _Taps(first - source.start, second - source.start, self.share[cells]), source

    def to(self, like: Tensor) -> _Taps:
        """A copy with the device and precision of ``like``."""
        return _Taps(self.first.to(like.device), self.second.to(like.device), self.share.to(like))

    def resize(self, maps: Tensor, dim: int) -> Tensor:
        """Resize dimension ``dim`` of [h, w]."""
        share = self.share[:, None] if dim == 0 else self.share
        # the order in which PyTorch's kernels round
        second = maps.index_select(dim, self.second) * share
        return torch.addcmul(second, maps.index_select(dim, self.first), 1 - share)
