from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from panoptic_maps import BIG_IDS

from odise_pl.metrics.overlap import _count_pixels, _count_runs, count_overlaps, unlisted_value


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_runs_and_pixels_count_as_a_loop_does(data: st.DataObject) -> None:
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
    # as on accelerators, here on the CPU
    assert np.array_equal(_count_pixels(first, second, listed, listed), expected)


def test_maps_without_runs_and_rows_that_continue_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 4, (2, 30, 40), generator=generator)
    counts = count_overlaps(first, second, range(4), range(4))
    assert counts.sum() == 1200
    assert counts[1, 2] == ((first == 1) & (second == 2)).sum()


def test_unlisted_value() -> None:
    labels = torch.tensor([[0, 5], [2**40, 7]])
    assert unlisted_value(labels, [0, 5, 7]) == 2**40
    assert unlisted_value(labels, [0, 5, 7, 2**40]) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_counts_the_same() -> None:
    labels = torch.randint(0, 9, (2, 50, 60)) * 1_000_003
    values = [i * 1_000_003 for i in range(8)]
    on_gpu = count_overlaps(labels[0].cuda(), labels[1].cuda(), values, values)
    assert np.array_equal(on_gpu, count_overlaps(labels[0], labels[1], values, values))
