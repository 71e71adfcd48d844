"""Count the pixels of each pair of values of two label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


def count_overlaps(
    first: Tensor, second: Tensor, first_values: Sequence[int], second_values: Sequence[int]
) -> IntArray:
    """Contingency table of two label maps of the same size.

    Args:
        first: integer [H, W] on any device.
        second: integer [H, W] on the same device.
        first_values: F distinct values.
        second_values: S distinct values.

    Returns:
        int64 [F + 1, S + 1] on the CPU: entry (i, j) counts the pixels with ``first_values[i]`` in the first
        and ``second_values[j]`` in the second map; the last row and column count all other values.
    """
    if first.device.type == "cpu":
        return _count_runs(first, second, first_values, second_values)
    return _count_pixels(first, second, first_values, second_values)


def unlisted_value(labels: Tensor, values: Sequence[int]) -> int | None:
    """The smallest value of an integer map that is not in ``values``; None if all are."""
    found = torch.unique(labels)
    others = found[~torch.isin(found, torch.tensor(values, device=labels.device))]
    return int(others[0]) if len(others) else None


def _count_runs(
    first: Tensor, second: Tensor, first_values: Sequence[int], second_values: Sequence[int]
) -> IntArray:
    # Label maps consist of long runs along their rows. Two comparisons per pixel find the runs, fifty times
    # fewer than pixels; everything more expensive is done once per run.
    a, b = first.reshape(-1).numpy(), second.reshape(-1).numpy()
    changed = np.ones(a.size, dtype=bool)
    np.not_equal(a[1:], a[:-1], out=changed[1:])
    changed[1:] |= b[1:] != b[:-1]
    starts = np.flatnonzero(changed)
    lengths = np.diff(starts, append=a.size)
    shape = (len(first_values) + 1, len(second_values) + 1)
    codes = _positions(a[starts], first_values) * shape[1] + _positions(b[starts], second_values)
    counts = np.bincount(codes, weights=lengths, minlength=shape[0] * shape[1])
    return counts.astype(np.int64).reshape(shape)


def _positions(labels: NDArray[np.integer], values: Sequence[int]) -> IntArray:
    """Index in ``values`` of each label [N]; ``len(values)`` for other labels."""
    table = np.asarray(values, dtype=np.int64)
    order = np.argsort(table)
    slots = np.minimum(np.searchsorted(table, labels.astype(np.int64), sorter=order), len(table) - 1)
    found = order[slots]
    return np.where(table[found] == labels, found, len(table))


def _count_pixels(
    first: Tensor, second: Tensor, first_values: Sequence[int], second_values: Sequence[int]
) -> IntArray:
    shape = (len(first_values) + 1, len(second_values) + 1)
    codes = _pixel_positions(first, first_values) * shape[1] + _pixel_positions(second, second_values)
    return torch.bincount(codes, minlength=shape[0] * shape[1]).reshape(shape).cpu().numpy()


def _pixel_positions(labels: Tensor, values: Sequence[int]) -> Tensor:
    """:func:`_positions` of every pixel, on the map's device."""
    table, order = torch.tensor(values, dtype=torch.int64, device=labels.device).sort()
    flat = labels.reshape(-1).to(torch.int64)
    slots = torch.searchsorted(table, flat).clamp_(max=len(table) - 1)
    return torch.where(table[slots] == flat, order[slots], len(table))
