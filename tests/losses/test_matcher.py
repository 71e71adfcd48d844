from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import halved, predictions, seeded, target
from torch import Tensor
from torch.nn import functional as F

from odise_pl.losses.errors import NonFiniteError
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.structures import MaskPredictions, Targets


def literal_costs(
    matcher: HungarianMatcher, p: MaskPredictions, i: int, t: Targets, points: Tensor
) -> Tensor:
    """The weighted cost of every pair, one at a time, at the same points."""
    cost = torch.zeros(p.mask_logits.shape[1], len(t.labels))
    grid = (2 * points - 1)[:, :, None]
    for q in range(cost.shape[0]):
        logits = F.grid_sample(p.mask_logits[i, q][None, None], grid, align_corners=False).flatten()
        for j in range(cost.shape[1]):
            truth = F.grid_sample(t.masks[j].float()[None, None], grid, align_corners=False).flatten()
            s = logits.sigmoid()
            dice = 1 - (2 * (s * truth).sum() + 1) / (s.sum() + truth.sum() + 1)
            mask = F.binary_cross_entropy_with_logits(logits, truth)
            label = -p.class_logits[i, q].softmax(0)[t.labels[j]]
            cost[q, j] = matcher.classification * label + matcher.mask * mask + matcher.dice * dice
    return cost


@given(st.integers(0, 4), st.integers(1, 5), st.integers(0, 100))
def test_match_is_cheapest_permutation(count: int, queries: int, seed: int) -> None:
    matcher = HungarianMatcher(1.5, 2.5, 3.5, num_points=32)
    p, t = predictions(1, queries, seed), target(count, seed)
    match = matcher(p, [t], seeded(seed), [7])[0]
    cost = literal_costs(matcher, p, 0, t, seeded(seed)(1, 32, 2))
    pairs = min(queries, count)
    assert len(match.queries) == len(match.targets) == pairs
    assert len(set(match.queries.tolist())) == len(set(match.targets.tolist())) == pairs
    assert match.queries.tolist() == sorted(match.queries.tolist())
    costs = matcher.costs(p.class_logits[0], p.mask_logits[0], t, seeded(seed))
    torch.testing.assert_close(1.5 * costs.classification + 2.5 * costs.mask + 3.5 * costs.dice, cost)
    ours = cost[match.queries, match.targets].sum().item()
    table = (cost if count <= queries else cost.T).tolist()  # the smaller side in columns
    options = (sum(table[i][j] for j, i in enumerate(c)) for c in permutations(range(len(table)), pairs))
    assert ours == pytest.approx(min(options), abs=1e-4)


def test_images_without_targets_have_no_matches() -> None:
    matches = HungarianMatcher(num_points=8)(predictions(), [target(0), target(2)], seeded(), [0, 1])
    assert [len(m.queries) for m in matches] == [0, 2]
    assert matches[0].queries.dtype == torch.int64


@pytest.mark.parametrize(
    ("field", "term"), [("class_logits", "classification"), ("mask_logits", "mask, dice")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_costs_name_image_and_term(field: str, term: str, value: float) -> None:
    p = predictions()
    with torch.no_grad():
        getattr(p, field)[1, 2] = value
    if field == "mask_logits" and value == float("inf"):
        term = "mask"  # the sigmoid of infinity is 1
    with pytest.raises(NonFiniteError, match=rf"image 4242: the matching cost \({term}\) is NaN or infinite"):
        HungarianMatcher(num_points=8)(p, [target(2), target(2)], seeded(), [17, 4242])


def test_costs_are_float32_without_gradients() -> None:
    low = halved(predictions())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        costs = HungarianMatcher(num_points=8).costs(
            low.class_logits[0], low.mask_logits[0], target(2), seeded()
        )
    for cost in vars(costs).values():
        assert cost.dtype == torch.float32
        assert not cost.requires_grad


def test_zero_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"criterion\.weights"):
        HungarianMatcher(0, 0, 0)
