"""Count the pixels of each pair of values of two label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


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
    changed = np.ones(true.size, dtype=bool)
    np.not_equal(true[1:], true[:-1], out=changed[1:])
    changed[1:] |= predicted[1:] != predicted[:-1]
    starts = np.flatnonzero(changed)
    lengths = np.diff(starts, append=true.size)
    rows = _positions(true[starts], true_values, "truth")
    columns = _positions(predicted[starts], predicted_values, "prediction")
    shape = len(true_values), len(predicted_values)
    counts = np.bincount(rows * shape[1] + columns, weights=lengths, minlength=shape[0] * shape[1])
    return counts.astype(np.int64).reshape(shape)


def _positions(labels: NDArray[np.integer], values: Sequence[int], where: str) -> IntArray:
    """The first index in ``values`` of each label [N]."""
    table = np.asarray(values, dtype=np.int64)
    order = np.argsort(table, kind="stable")
    slots = np.minimum(np.searchsorted(table, labels.astype(np.int64), sorter=order), len(table) - 1)
    found = order[slots]
    unlisted = labels[table[found] != labels]
    if len(unlisted):
        raise ValueError(
            f"the {where} has pixels of {unlisted.min()}, which is none of its segments or classes"
        )
    return found
