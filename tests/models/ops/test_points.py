from __future__ import annotations

import pytest
import torch

from odise_pl.models.ops.points import Uniform, point_sample, uncertain_points


def seeded(seed: int = 0) -> Uniform:
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.rand(*size, generator=generator)


@pytest.mark.parametrize("importance", [0.0, 0.5, 0.75, 1.0])
def test_uncertain_points_then_random_points(importance: float) -> None:
    logits = seeded(3)(2, 1, 8, 8) * 2 - 1
    points = uncertain_points(logits, 16, seeded(4), oversample=3.0, importance=importance)
    assert points.shape == (2, 16, 2)

    draw = seeded(4)
    candidates, certain = draw(2, 48, 2), int(16 * importance)
    for n in range(2):
        undecided = point_sample(logits[n : n + 1], candidates[n : n + 1]).abs().flatten().tolist()
        wanted = sorted(range(48), key=undecided.__getitem__)[:certain]
        expected = {tuple(p) for p in candidates[n, wanted].tolist()}
        assert {tuple(p) for p in points[n, :certain].tolist()} == expected
    if certain < 16:
        assert torch.equal(points[:, certain:], draw(2, 16 - certain, 2))
