from __future__ import annotations

import math

import pytest

from odise_pl.models.ops.position import sine_positions


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 4), (3, 5, 8), (4, 2, 32)])
def test_sine_positions_equal_loop(height: int, width: int, channels: int) -> None:
    encoded = sine_positions(height, width, channels)
    assert encoded.shape == (channels, height, width)
    half = channels // 2
    for row in range(height):
        for column in range(width):
            for start, index, length in ((0, row, height), (half, column, width)):
                position = 2 * math.pi * (index + 1) / (length + 1e-6)
                for c in range(half):
                    angle = position / 10000 ** (2 * (c // 2) / half)
                    expected = math.cos(angle) if c % 2 else math.sin(angle)
                    assert float(encoded[start + c, row, column]) == pytest.approx(expected, abs=2e-6)
