"""Count the pixels of each pair of values of two label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]
_SLOTS = 1021  # of a table of values, at least


def check_same_size(prediction: Tensor, truth: Tensor) -> None:
    """Raise ValueError unless the last two dimensions (height, width) are equal."""
    size, true_size = tuple(prediction.shape[-2:]), tuple(truth.shape[-2:])
    if size != true_size:
        raise ValueError(
            f"the prediction has size {size}, the truth {true_size} (height, width): resize the prediction"
        )


def count_overlaps(
    prediction: Tensor, truth: Tensor, predicted_values: Sequence[int], true_values: Sequence[int]
) -> IntArray:
    """Contingency table of two label maps of an image.

    Args:
        prediction: integer [H, W] on any device.
        truth: integer [H, W] on any device.
        predicted_values: the P values that the prediction may have.
        true_values: the T values that the truth may have.

    Returns:
        int64 [T, P]: entry (i, j) counts the pixels with ``true_values[i]`` in the truth and
        ``predicted_values[j]`` in the prediction. A duplicate value has no pixels.

    Raises:
        ValueError: sizes differ, or a map has another value.
    """
    check_same_size(prediction, truth)
    # Label maps consist of long runs along their rows. Two comparisons per pixel find the runs, fifty times
    # fewer than pixels; everything more expensive is done once per run.
    true, predicted = (labels.reshape(-1).cpu().numpy() for labels in (truth, prediction))
    changed = true[1:] != true[:-1]
    changed |= predicted[1:] != predicted[:-1]
    first = np.zeros(min(1, true.size), dtype=np.int64)  # an empty map has no run
    edges = np.concatenate([first, np.flatnonzero(changed) + 1, [true.size]])
    starts, lengths = edges[:-1], edges[1:] - edges[:-1]
    rows = _positions(true[starts], true_values, "truth")
    columns = _positions(predicted[starts], predicted_values, "prediction")
    shape = len(true_values), len(predicted_values)
    counts = np.bincount(rows * shape[1] + columns, weights=lengths, minlength=shape[0] * shape[1])
    return counts.astype(np.int64).reshape(shape)


def _positions(labels: NDArray[np.integer], values: Sequence[int], where: str) -> IntArray:
    """The first index in ``values`` of each label [N]."""
    table, labels = np.asarray(values, dtype=np.int64), labels.astype(np.int64)
    # Found by a remainder that no two values share: four times as fast as a binary search.
    size, distinct = _SLOTS, len(np.unique(table))
    while len(np.unique(table % size)) < distinct:
        size = 2 * size + 1
    slots = np.zeros(size, dtype=np.int64)
    slots[table[::-1] % size] = np.arange(len(table))[::-1]
    found = slots[labels % size]
    unlisted = labels[table[found] != labels]
    if len(unlisted):
        raise ValueError(
            f"the {where} has pixels of {unlisted.min()}, which is none of its segments or classes"
        )
    return found
