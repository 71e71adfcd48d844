from __future__ import annotations

import pytest
import torch

from odise_pl.models.heads.mask_decoder import DecoderOutput, MaskDecoder
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from tests.parity.checks import Check, Tolerance, compare, compare_maps, worst
from tests.parity.predictions import RecordedThresholds

ONE = torch.ones(1)


def test_differences_are_relative_to_largest_value() -> None:
    recorded = torch.tensor([-8.0, 1.0, 0.0])
    assert compare("x", recorded + torch.tensor([0.0, 2.0, -1.0]), recorded)[0].difference == 0.25
    assert compare("x", torch.full((3,), 0.5), torch.zeros(3))[0].difference == 0.5
    assert compare("x", torch.zeros(0), torch.zeros(0))[0].ok
    assert compare("x", ONE, None) == worst("x", []) == compare_maps("x", ONE, None) == []
    assert Check("x", 0.5, 0.5).ok


@pytest.mark.parametrize("tolerance", [Tolerance(1.0), Tolerance(1.0, share=0.9)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_values_and_other_shapes_fail(bad: float, tolerance: Tolerance) -> None:
    pairs = [("fine", ONE, ONE), ("bad", bad * ONE, ONE), ("near", ONE + 0.1, ONE)]
    (check,) = worst("x", pairs, tolerance)
    assert not check.ok
    assert "bad" in check.note
    assert not compare("x", ONE, bad * ONE, tolerance)[0].ok
    assert not compare("x", torch.ones(1, 2), torch.ones(2), tolerance)[0].ok
    assert not compare_maps("x", torch.ones(1, 2), torch.ones(2), tolerance)[0].ok


def test_share_of_values_may_differ_by_more() -> None:
    ours, recorded, tolerance = torch.ones(10), torch.ones(10), Tolerance(1e-3, share=0.2)
    ours[:2] = 5
    assert compare("x", ours, recorded, tolerance)[0].ok
    ours[2] = 1.01
    assert not compare("x", ours, recorded, tolerance)[0].ok


def test_recorded_thresholds_use_recorded_masks() -> None:
    torch.manual_seed(0)
    sizes, levels = (32, 32, 32, 8, 4, 4, 64), [torch.randn(2, 32, s, s + 1) for s in (2, 4, 8)]
    features = PixelFeatures(torch.randn(2, 32, 16, 18), levels)
    plain, decoder = MaskDecoder(*sizes), RecordedThresholds(*sizes)
    decoder.load_state_dict(plain.state_dict())

    def same(one: list[DecoderOutput], other: list[DecoderOutput]) -> list[bool]:
        return [torch.equal(a.mask_embed, b.mask_embed) for a, b in zip(one, other, strict=True)]

    with torch.no_grad():
        expected = plain(features)
        assert all(same(decoder(features), expected))
        decoder.recorded = {i: output.mask_logits for i, output in enumerate(expected)}
        assert all(same(decoder(features), expected))
        decoder.recorded = {2: -expected[2].mask_logits}
        assert same(decoder(features), expected) == [True, True, False, False, False]
