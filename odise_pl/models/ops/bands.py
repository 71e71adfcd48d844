"""Mask logits at image size in bands of rows: whole masks of large images would take gigabytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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
        self._canvas_rows = self._places(height, canvas[0])[: valid[0]]
        self._output_rows = self._places(valid[0], output[0])
        canvas_columns = self._places(width, canvas[1])[: valid[1]]
        self._columns = [canvas_columns, self._places(valid[1], output[1])]
        self._once = valid == output  # the second resizing would change nothing

    def _places(self, old: int, new: int) -> Tensor:
        """Places of ``new`` cells among ``old``, as PyTorch computes them in single precision."""
        places = torch.tensor(float(old)) / new * (torch.arange(new) + 0.5) - 0.5
        return places.clamp(min=0).to(self.device)

    def _band(self, rows: slice) -> Band:
        output = self._output_rows[rows]
        on_canvas = rows if self._once else _source(output)
        canvas = self._canvas_rows[on_canvas]
        source = _source(canvas)
        steps = [(self._columns[0], canvas - source.start)]
        if not self._once:
            steps.append((self._columns[1], output - on_canvas.start))

        def band(query: int) -> Tensor:
            logits = self._logits[query, source]
            for columns, rows in steps:
                logits = _resize(_resize(logits, columns, 1), rows, 0)
            return logits

        return band


def _source(places: Tensor) -> slice:
    """The cells that some places are between, up to the last cell of the map."""
    return slice(int(places[0]), int(places[-1]) + 2)


def _resize(maps: Tensor, places: Tensor, dim: int) -> Tensor:
    """Linear interpolation of [h, w] at places along dimension ``dim``."""
    first = places.long().clamp(max=maps.shape[dim] - 1)
    share = (places - first).to(maps.dtype)
    share = share[:, None] if dim == 0 else share
    # the order in which PyTorch's kernels round
    second = maps.index_select(dim, (first + 1).clamp(max=maps.shape[dim] - 1)) * share
    return torch.addcmul(second, maps.index_select(dim, first), 1 - share)
