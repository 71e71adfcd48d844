from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odise_pl.models.inference import resize_masks
from odise_pl.models.ops import bands
from odise_pl.models.ops.bands import ResizedMasks

sides = st.integers(65, 300)


@settings(max_examples=60, deadline=None)
@given(
    valid=st.tuples(sides, sides),
    output=st.none() | st.tuples(st.integers(1, 700), st.integers(128, 700)),
    pixels=st.sampled_from([1, 1 << 12, 1 << 17]),
)
def test_resized_bands_equal_whole_masks_bit_for_bit(
    valid: tuple[int, int], output: tuple[int, int] | None, pixels: int
) -> None:
    """Enlarged, reduced and neither, with padding on the canvas."""
    output = output or valid
    canvas = (-(-valid[0] // 64) * 64, -(-valid[1] // 64) * 64)
    logits = 5 * torch.randn(
        2, canvas[0] // 4, canvas[1] // 4, generator=torch.Generator().manual_seed(pixels)
    )
    whole = resize_masks(logits, canvas, valid, output)
    rows, parts = [], []
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(bands._PIXELS, "cpu", pixels)
        for band, part in ResizedMasks(logits, canvas, valid, output).bands():
            rows += range(band.start, band.stop)
            parts.append(torch.stack([part(0), part(1)]))
    assert rows == list(range(output[0]))
    assert torch.equal(torch.cat(parts, dim=1), whole)
