from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odise_pl.models.backbones.sliding_window import Window, merge_windows, plan_windows


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    """Height, width and window side, multiples of 32."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return 32 * height, 32 * width, 32 * draw(st.integers(1, min(height, width)))


@given(layouts())
def test_windows_cover_every_pixel(layout: tuple[int, int, int]) -> None:
    height, width, side = layout
    windows = plan_windows(height, width, side)
    seen = torch.zeros(height, width)
    for window in windows:
        assert window.side == side
        assert 0 <= window.top <= height - side
        assert 0 <= window.left <= width - side
        assert window.top % side == 0 or window.top == height - side
        assert window.left % side == 0 or window.left == width - side
        seen[window.top : window.top + side, window.left : window.left + side] += 1
    assert seen.min() == 1
    assert len(set(windows)) == len(windows) == -(-height // side) * -(-width // side)


@given(layouts(), st.sampled_from([4, 8, 16, 32]))
def test_merged_cells_are_means_over_their_windows(layout: tuple[int, int, int], stride: int) -> None:
    height, width, side = layout
    windows = plan_windows(height, width, side)
    generator = torch.Generator().manual_seed(height + width)
    cells = side // stride
    parts = torch.randn(len(windows) * 2, 3, cells, cells, generator=generator)
    merged = merge_windows(parts, windows, (height, width), stride)
    for b in range(2):
        for y in range(0, height // stride, max(1, cells // 2)):
            for x in range(0, width // stride, max(1, cells // 2)):
                seen = [
                    parts[2 * i + b, :, y - w.top // stride, x - w.left // stride]
                    for i, w in enumerate(windows)
                    if 0 <= y - w.top // stride < cells and 0 <= x - w.left // stride < cells
                ]
                torch.testing.assert_close(merged[b, :, y, x], torch.stack(seen).mean(0))


@pytest.mark.parametrize(
    ("height", "width", "count"), [(512, 512, 1), (1024, 1024, 4), (1024, 1344, 6), (1024, 2560, 10)]
)
def test_published_windows(height: int, width: int, count: int) -> None:
    windows = plan_windows(height, width, 512)
    assert len(windows) == count
    assert {window.side for window in windows} == {512}
    assert windows[-1] == Window(height - 512, width - 512, 512)
