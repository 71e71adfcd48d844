from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odise_pl.metrics.overlap import count_overlaps

BIG_IDS = st.one_of(st.integers(1, 60), st.integers(2**16, 2**24 + 2**20), st.integers(2**31, 2**40))


@settings(max_examples=50)
@given(st.data())
def test_counts_equal_a_loop(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(0, 5)), data.draw(st.integers(1, 6)))
    values = data.draw(st.lists(BIG_IDS, min_size=2, max_size=6, unique=True))
    size = shape[0] * shape[1]
    pixels = st.lists(st.sampled_from(values), min_size=size, max_size=size)
    first, second = (torch.tensor(data.draw(pixels), dtype=torch.int64).reshape(shape) for _ in range(2))
    expected = np.zeros((len(values),) * 2, dtype=np.int64)
    for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True):
        expected[values.index(b), values.index(a)] += 1
    assert np.array_equal(count_overlaps(first, second, values, values), expected)


def test_types_and_strides_may_differ_and_duplicates_are_empty() -> None:
    labels = torch.tensor([[1, 1, 2, 0], [1, 2, 2, 2]])
    counts = count_overlaps(labels.t().to(torch.uint8), labels.t(), [0, 2, 1, 2], [0, 1, 2])
    assert counts.tolist() == [[1, 0, 0, 0], [0, 0, 3, 0], [0, 4, 0, 0]]


def test_unlisted_values_and_other_sizes_raise_an_error() -> None:
    labels = torch.tensor([[0, 5], [2**40, 7]])
    with pytest.raises(ValueError, match=f"truth .*{2**40}"):
        count_overlaps(labels % 2, labels, [0, 1], [0, 5, 7])
    with pytest.raises(ValueError, match=r"prediction .*\(1, 2\).*truth \(2, 2\)"):
        count_overlaps(labels[:1], labels, [], [])
