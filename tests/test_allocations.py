"""Counting what lives."""

from __future__ import annotations

import gc

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from odise_pl.allocations import Allocations, bytes_of


def test_bytes_are_counted_from_birth_to_death_and_once_for_all_views() -> None:
    with Allocations() as allocations:
        first = torch.zeros(100)
        view = first[:10].reshape(2, 5)
        assert sum(allocations.held.values()) == 400
        del first
        assert sum(allocations.held.values()) == 400, "the view holds all of it"
        del view
        gc.collect()
        assert sum(allocations.held.values()) == 0
    assert allocations.peak == 400


def test_the_peak_is_told_by_kind() -> None:
    old = torch.zeros(10)
    with Allocations() as allocations:
        allocations.label([old], "weights")
        allocations.kind = "work"
        passing = torch.ones(1000)
        del passing
        kept = torch.ones(50)
        assert allocations.at_peak == {"other": 0, "weights": 40, "work": 4000}
        allocations.reset_peak()
        assert allocations.peak == 240 == 40 + bytes_of([kept])
        allocations.label([kept], "kept")
    assert allocations.held == {"other": 0, "weights": 40, "work": 0, "kept": 200}


def test_tensors_without_data_count_as_if_they_had() -> None:
    with FakeTensorMode(), Allocations() as allocations:
        huge = torch.zeros(2**20, 2**20)
        huge.untyped_storage().resize_(0)
        assert sum(allocations.held.values()) == 0
    assert allocations.peak == 2**42
