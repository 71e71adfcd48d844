from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from odise_pl.models.ops.points import Uniform, point_sample, uncertain_points


def seeded(seed: int = 0) -> Uniform:
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.rand(*size, generator=generator)


def bilinear(image: Tensor, x: float, y: float) -> float:
    """The value at (x, y) in 0..1, zero outside."""
    height, width = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    left, top = math.floor(column), math.floor(row)
    value = 0.0
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                value += float(image[i, j]) * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_point_sample_is_bilinear_interpolation(height: int, width: int, seed: int) -> None:
    draw = seeded(seed)
    maps = draw(2, 3, height, width).double()
    points = draw(2, 7, 2).double() * 1.2 - 0.1
    values = point_sample(maps, points)
    for n in range(2):
        for c in range(3):
            expected = [bilinear(maps[n, c], float(x), float(y)) for x, y in points[n]]
            torch.testing.assert_close(values[n, c], torch.tensor(expected, dtype=torch.float64))


def test_points_are_broadcast_over_maps() -> None:
    maps, points = seeded()(3, 2, 4, 5), seeded(1)(1, 6, 2)
    assert torch.equal(point_sample(maps, points), point_sample(maps, points.expand(3, -1, -1)))


@pytest.mark.parametrize("importance", [0.0, 0.5, 0.75, 1.0])
def test_uncertain_points_then_random_points(importance: float) -> None:
    logits = seeded(3)(2, 1, 8, 8) * 2 - 1
    points = uncertain_points(logits, 16, seeded(4), oversample=3.0, importance=importance)
    assert points.shape == (2, 16, 2)

    draw = seeded(4)
    candidates, certain = draw(2, 48, 2), int(16 * importance)
    for n in range(2):
        undecided = [abs(bilinear(logits[n, 0], float(x), float(y))) for x, y in candidates[n]]
        wanted = sorted(range(48), key=undecided.__getitem__)[:certain]
        expected = {tuple(p) for p in candidates[n, wanted].tolist()}
        assert {tuple(p) for p in points[n, :certain].tolist()} == expected
    if certain < 16:
        assert torch.equal(points[:, certain:], draw(2, 16 - certain, 2))


def test_uncertain_points_depend_only_on_their_generator() -> None:
    logits = seeded(5)(2, 1, 6, 6)
    first = uncertain_points(logits, 10, seeded(6))
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(first, uncertain_points(logits, 10, seeded(6)))
    assert not torch.equal(first, uncertain_points(logits, 10, seeded(7)))
