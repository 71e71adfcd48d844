from __future__ import annotations

import pytest
import torch

from tests.parity.checks import (
    Check,
    agree_where_decided,
    compare,
    equal_tensors,
    near,
    relative,
    table,
    worst,
)


def test_differences_are_relative_to_the_records_largest_value() -> None:
    recorded = torch.tensor([-8.0, 1.0, 0.0])
    assert relative(recorded + torch.tensor([0.0, 2.0, -1.0]), recorded) == 0.25
    assert relative(torch.full((3,), 0.5), torch.zeros(3)) == 0.5  # a record of zeros has no largest value
    assert relative(torch.zeros(0), torch.zeros(0)) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_passes(bad: float) -> None:
    ours, recorded = torch.tensor([1.0, bad]), torch.ones(2)
    assert not compare("x", ours, recorded)[0].ok
    assert not compare("x", recorded, ours)[0].ok
    pairs = [("fine", recorded, recorded), ("bad", ours, recorded), ("near", recorded + 0.1, recorded)]
    (check,) = worst("x", pairs, tolerance=1.0)
    assert not check.ok
    assert "bad" in check.note


def test_another_shape_never_passes() -> None:
    (check,) = compare("x", torch.ones(1, 2), torch.ones(2))
    assert not check.ok
    assert check.note == "(1, 2), recorded (2,)"
    assert not equal_tensors("x", torch.ones(1, dtype=torch.int64), torch.ones(2, dtype=torch.int64))[0].ok


def test_what_was_not_recorded_is_not_checked() -> None:
    assert compare("x", torch.ones(1), None) == []
    assert equal_tensors("x", torch.ones(1), None) == []
    assert worst("x", [], 1.0) == []


def test_the_tolerance_itself_passes() -> None:
    assert Check("x", 0.5, 0.5).ok
    assert not Check("x", 0.5000001, 0.5).ok
    assert not Check("x", 0.0, 0.5, wrong=1).ok


def test_elements_may_differ_only_where_they_are_undecided_and_few() -> None:
    ours, recorded = torch.zeros(2000, dtype=torch.int64), torch.zeros(2000, dtype=torch.int64)
    recorded[:2] = 1
    undecided = torch.zeros(2000, dtype=torch.bool)
    undecided[:3] = True
    passed = agree_where_decided("x", ours, recorded, undecided)
    assert passed.ok
    assert passed.difference == 1e-3
    assert passed.note == "2 of 2000 pixels undecided"
    recorded[2] = 1  # undecided too, but one too many
    assert not agree_where_decided("x", ours, recorded, undecided).ok
    recorded[1:3] = 0
    undecided[0] = False
    assert agree_where_decided("x", ours, recorded, undecided).wrong == 1


def test_near_zero_is_measured_against_the_largest_logit() -> None:
    logits = torch.tensor([-10.0, 0.9e-3, -1.1e-3, 5.0])
    assert near(logits, 1e-4).tolist() == [False, True, False, False]


def test_the_table_shows_every_check_and_what_is_not_ok() -> None:
    lines = table(
        [("one", Check("stage", 1e-6, 1e-4)), ("two", Check("other", 0.5, 0.0, "why", wrong=3))]
    ).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["one", "stage", "1.0e-06", "1e-04", "ok"]
    assert lines[2].split()[:6] == ["two", "other", "5.0e-01", "equal", "NOT", "OK"]
    assert lines[2].endswith("3 wrong; why")
