"""Count the pixels in which two label maps agree on a pair of values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]

# Values are looked up by their low bits, which mostly differ; a binary search takes longer.
_SLOTS = 1 << 14


def count_overlaps(
    first: Tensor, second: Tensor, first_values: Sequence[int], second_values: Sequence[int]
) -> IntArray:
    """Contingency table of two label maps of one size.

    Args:
        first: integer [H, W] on any device.
        second: integer [H, W] on the same device.
        first_values: the F distinct values that ``first`` may hold, in any order.
        second_values: the S distinct values that ``second`` may hold, in any order.

    Returns:
        int64 [F + 1, S + 1] in main memory: entry (i, j) counts the pixels with ``first_values[i]`` in the
        first and ``second_values[j]`` in the second map; the last row and column count all other values.
    """
    if first.device.type == "cpu":
        return _count_runs(first, second, first_values, second_values)
    return _count_pixels(first, second, first_values, second_values)


def unlisted_value(labels: Tensor, values: Sequence[int]) -> int | None:
    """The smallest value of an integer map that is not among ``values``, if there is one."""
    found = torch.unique(labels)
    others = found[~torch.isin(found, torch.tensor(values, device=labels.device))]
    return int(others[0]) if len(others) else None


def _count_runs(
    first: Tensor, second: Tensor, first_values: Sequence[int], second_values: Sequence[int]
) -> IntArray:
    # Label maps consist of long runs along their rows: two comparisons per pixel find the runs (fifty
    # times fewer than pixels), and everything dearer is done once per run.
    a, b = first.reshape(-1).numpy(), second.reshape(-1).numpy()
    starts = _run_starts(a, b)
    lengths = np.diff(starts, append=a.size)
    shape = (len(first_values) + 1, len(second_values) + 1)
    codes = _positions(a[starts], first_values) * shape[1] + _positions(b[starts], second_values)
    counts = np.bincount(codes, weights=lengths, minlength=shape[0] * shape[1])
    return counts.astype(np.int64).reshape(shape)


def _run_starts(a: NDArray[np.integer], b: NDArray[np.integer]) -> IntArray:
    """Flat indices at which either array differs from its predecessor, the first index included."""
    if a.size == 0:
        return np.zeros(0, dtype=np.int64)
    changed = np.empty(a.size, dtype=bool)
    changed[0] = True
    np.not_equal(a[1:], a[:-1], out=changed[1:])
    changed[1:] |= b[1:] != b[:-1]
    return np.flatnonzero(changed)


def _positions(labels: NDArray[np.integer], values: Sequence[int]) -> IntArray:
    """Index in ``values`` of each label; ``len(values)`` for a label that is not there."""
    labels, table = labels.astype(np.int64), np.asarray(values, dtype=np.int64)
    numbers = np.arange(len(table))
    slots = np.zeros(_SLOTS, dtype=np.int64)
    slots[table & (_SLOTS - 1)] = numbers
    if np.array_equal(slots[table & (_SLOTS - 1)], numbers):
        found = slots[labels & (_SLOTS - 1)]
    else:  # two values share their low bits
        order = np.argsort(table)
        found = order[np.minimum(np.searchsorted(table[order], labels), len(table) - 1)]
    return np.where(table[found] == labels, found, len(table))


def _count_pixels(
    first: Tensor, second: Tensor, first_values: Sequence[int], second_values: Sequence[int]
) -> IntArray:
    shape = (len(first_values) + 1, len(second_values) + 1)
    codes = _pixel_positions(first, first_values) * shape[1] + _pixel_positions(second, second_values)
    counts = torch.bincount(codes, minlength=shape[0] * shape[1])
    return counts.reshape(shape).cpu().numpy()


def _pixel_positions(labels: Tensor, values: Sequence[int]) -> Tensor:
    """The same as :func:`_positions`, pixel by pixel on the map's device."""
    table, order = torch.tensor(values, dtype=torch.int64, device=labels.device).sort()
    flat = labels.reshape(-1).to(torch.int64)
    slots = torch.searchsorted(table, flat).clamp_(max=len(table) - 1)
    return torch.where(table[slots] == flat, order[slots], len(table))
