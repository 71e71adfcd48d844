"""Losses at recorded points instead of random ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.matcher import HungarianMatcher, Match
from odise_pl.models.ops.points import Uniform
from odise_pl.structures import MaskPredictions, Targets
from tests.parity.checks import Check, equal

# The parts of our losses by the names in the records.
TERMS = {"loss_ce": "classification", "loss_mask": "mask", "loss_dice": "dice"}


class NotingMatcher(HungarianMatcher):
    """A matcher that notes its matches and may be given the points at which it compares masks.

    Args:
        num_points: points that are drawn.
        points: [1, P, 2] that are used instead of random ones.
    """

    def __init__(self, num_points: int, points: Tensor | None = None) -> None:
        super().__init__(num_points=num_points)
        self.points, self.noted = points, list[list[Match]]()

    def __call__(
        self,
        predictions: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
    ) -> list[Match]:
        """As the base class; one more entry in ``noted``."""
        source = uniform if self.points is None else _always(self.points)
        self.noted.append(super().__call__(predictions, targets, source, image_ids))
        return self.noted[-1]


def _always(points: Tensor) -> Uniform:
    return lambda *size: points.expand(size[0], -1, -1)[:, : size[1]]


def fixed_criterion(
    matcher_points: Tensor, loss_points: Tensor
) -> tuple[SetCriterion, NotingMatcher, Uniform]:
    """The published losses without importance sampling, and the source of their points."""
    matcher = NotingMatcher(matcher_points.shape[1], matcher_points)
    criterion = SetCriterion(
        matcher, LossWeights(), num_points=loss_points.shape[1], oversample=1.0, importance=0.0
    )
    return criterion, matcher, _always(loss_points)


def suffix(index: int, last: int) -> str:
    """What the records put behind the name of a loss of prediction ``index`` of ``last`` + 1."""
    return "" if index == last else f"_{index}"


def match_check(
    stage: str, noted: Sequence[Sequence[Match]], recorded: Sequence[Sequence[tuple[Tensor, Tensor]]]
) -> Check:
    """Whether matches are the recorded ones, prediction by prediction and image by image."""
    wrong = total = 0
    for ours, theirs in zip(noted, recorded, strict=True):
        for match, (queries, targets) in zip(ours, theirs, strict=True):
            total += len(queries)
            same = match.queries.tolist() == queries.tolist() and match.targets.tolist() == targets.tolist()
            wrong += 0 if same else max(len(queries), 1)
    return equal(stage, wrong, total, f"{total} pairs")
