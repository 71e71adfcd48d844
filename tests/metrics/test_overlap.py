from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odise_pl.metrics.overlap import _count_pixels, _count_runs, count_overlaps, unlisted_value

BIG_IDS = st.one_of(st.integers(1, 60), st.integers(2**16, 2**24 + 2**20), st.integers(2**31, 2**40))


@settings(max_examples=100)
@given(st.data())
def test_counts_of_runs_and_of_pixels_equal_a_loop(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(0, 5)), data.draw(st.integers(1, 6)))
    values = data.draw(st.lists(BIG_IDS, min_size=2, max_size=6, unique=True))
    size = shape[0] * shape[1]
    pixels = st.lists(st.sampled_from(values), min_size=size, max_size=size)
    first, second = (torch.tensor(data.draw(pixels), dtype=torch.int64).reshape(shape) for _ in range(2))
    listed = values[:-1]
    expected = np.zeros((len(listed) + 1,) * 2, dtype=np.int64)
    for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True):
        expected[values.index(a), values.index(b)] += 1
    assert np.array_equal(_count_runs(first, second, listed, listed), expected)
    assert np.array_equal(_count_pixels(first, second, listed, listed), expected)


def test_unlisted_value_is_the_smallest() -> None:
    labels = torch.tensor([[0, 5], [2**40, 7]])
    assert unlisted_value(labels, [0, 5, 7]) == 2**40
    assert unlisted_value(labels, [0, 5, 7, 2**40]) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_counts_on_the_gpu_equal_the_cpu() -> None:
    labels = torch.randint(0, 9, (2, 50, 60)) * 1_000_003
    values = [i * 1_000_003 for i in range(8)]
    on_gpu = count_overlaps(labels[0].cuda(), labels[1].cuda(), values, values)
    assert np.array_equal(on_gpu, count_overlaps(labels[0], labels[1], values, values))
