"""Mask logits at the size of an image, a band of rows at a time: all of them at once would take gigabytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from odise_pl.structures import Size

# Pixels of a band: what stays in a processor's cache; accelerators want more.
_PIXELS = {"cpu": 1 << 17}
_PIXELS_ELSEWHERE = 1 << 22
_VECTOR = 64

# Logits [rows, W] of a query, by its number.
Band = Callable[[int], Tensor]


class Masks:
    """Mask logits of one image, all of them in memory.

    Args:
        logits: [Q, H, W].

    Attributes:
        size: height and width.
        queries: Q.
        device: where the logits are.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
        self.size: Size = (logits.shape[1], logits.shape[2])
        self.queries, self.device = len(logits), logits.device

    def bands(self) -> Iterator[tuple[slice, Band]]:
        """All rows in order, in parts that are quick to work on."""
        height, width = self.size
        # whole vectors of processors, which round the few values that are left over in another way
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

    The same values as ``inference.resize_masks`` gives: on processors to the last bit, except for maps so
    small that PyTorch has another kernel for them.

    Args:
        mask_logits, canvas, valid, output: see there.
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
    """Which two cells of a side make each cell of a resized one.

    Attributes:
        first, second: cells, int64 [N].
        share: of the second one, [N].
    """

    first: Tensor
    second: Tensor
    share: Tensor

    @classmethod
    def of(cls, old: int, new: int) -> _Taps:
        """As PyTorch has it, in single precision."""
        place = (torch.tensor(float(old)) / new * (torch.arange(new) + 0.5) - 0.5).clamp(min=0)
        first = place.long().clamp(max=old - 1)
        return cls(first, (first + 1).clamp(max=old - 1), (place - first).clamp(0, 1))

    def part(self, cells: slice) -> tuple[_Taps, slice]:
        """Taps of some cells of the resized side, and the source cells that they read and count from."""
        first, second = self.first[cells], self.second[cells]
        source = slice(int(first[0]), int(second[-1]) + 1)
        return _Taps(first - source.start, second - source.start, self.share[cells]), source

    def to(self, like: Tensor) -> _Taps:
        """On the device and in the precision of a map."""
        return _Taps(self.first.to(like.device), self.second.to(like.device), self.share.to(like))

    def resize(self, maps: Tensor, dim: int) -> Tensor:
        """Resize a dimension of [h, w]."""
        share = self.share[:, None] if dim == 0 else self.share
        # PyTorch's kernels round in this order
        second = maps.index_select(dim, self.second) * share
        return torch.addcmul(second, maps.index_select(dim, self.first), 1 - share)
