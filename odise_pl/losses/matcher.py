"""Which query answers for which target (DETR, arXiv 2005.12872, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from odise_pl.errors import SettingError
from odise_pl.losses.errors import DIVERGED, NonFiniteError
from odise_pl.losses.point_losses import pairwise_cross_entropy, pairwise_dice, sample_masks
from odise_pl.models.ops.points import Uniform, point_sample
from odise_pl.structures import MaskPredictions, Targets


@dataclass(frozen=True)
class Costs:
    """Unweighted costs of every query (rows) for every target (columns): [Q, N] each."""

    classification: Tensor
    mask: Tensor
    dice: Tensor


@dataclass(frozen=True)
class Match:
    """Pairs of one image: query i answers for target j; int64 [N] each, on the CPU, queries ascending."""

    queries: Tensor
    targets: Tensor


# Costs [Q, N] to pairs of rows and columns, int64 [min(Q, N)] each, rows ascending.
Assignment = Callable[[Tensor], tuple[Tensor, Tensor]]


def cheapest(costs: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one assignment whose costs have the least sum."""
    rows, columns = linear_sum_assignment(costs.numpy())
    return torch.as_tensor(rows), torch.as_tensor(columns)


class HungarianMatcher:
    """Cheapest one-to-one assignment of queries to targets.

    Args:
        classification, mask, dice: weights of the costs.
        num_points: points at which masks are compared; one set serves all masks of an image.

    Attributes:
        assign: pairs rows and columns of the costs.
    """

    assign: Assignment

    def __init__(
        self, classification: float = 2.0, mask: float = 5.0, dice: float = 5.0, num_points: int = 12544
    ) -> None:
        if classification == mask == dice == 0:
            raise SettingError("all weights of the matching cost are 0; give one of them a value")
        self.classification, self.mask, self.dice = classification, mask, dice
        self.num_points = num_points
        self.assign = cheapest

    @torch.no_grad()
    def __call__(
        self,
        predictions: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
    ) -> list[Match]:
        """Match every image of a batch.

        Raises:
            NonFiniteError: a cost is NaN or infinite; names the image.
        """
        return [
            self._match(predictions, i, target, uniform, image_ids[i]) for i, target in enumerate(targets)
        ]

    def _match(
        self, predictions: MaskPredictions, index: int, target: Targets, uniform: Uniform, image_id: int
    ) -> Match:
        costs = self.costs(predictions.class_logits[index], predictions.mask_logits[index], target, uniform)
        total = self.classification * costs.classification + self.mask * costs.mask + self.dice * costs.dice
        matrix = total.cpu()
        if not matrix.isfinite().all():
            bad = [name for name, cost in vars(costs).items() if not cost.isfinite().all()]
            raise NonFiniteError(
                f"image {image_id}: the matching cost ({', '.join(bad)}) is NaN or infinite; " + DIVERGED
            )
        return Match(*self.assign(matrix))

    @torch.no_grad()
    def costs(self, class_logits: Tensor, mask_logits: Tensor, target: Targets, uniform: Uniform) -> Costs:
        """Unweighted costs of one image: class logits [Q, K + 1], mask logits [Q, h, w]."""
        device = mask_logits.device
        with torch.autocast(device.type, enabled=False):
            points = uniform(1, self.num_points, 2).to(device)
            logits = point_sample(mask_logits.float()[None], points).squeeze(0)
            truth = sample_masks(target.masks, points)
            return Costs(
                -class_logits.float().softmax(-1)[:, target.labels],
                pairwise_cross_entropy(logits, truth),
                pairwise_dice(logits, truth),
            )
