"""Assignment of queries to targets (DETR, arXiv 2005.12872, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Unweighted costs of every query and target: [Q, N] each."""

    classification: Tensor
    mask: Tensor
    dice: Tensor


@dataclass(frozen=True)
class Match:
    """Matched pairs of one image: int64 [N] each, on the CPU, queries ascending."""

    queries: Tensor
    targets: Tensor


class HungarianMatcher:
    """Cheapest one-to-one assignment of queries to targets.

    Args:
        classification, mask, dice: weights of the costs.
        num_points: points at which masks are compared, the same for all masks of an image.

    Raises:
        SettingError: all weights are 0.
    """

    def __init__(
        self, classification: float = 2.0, mask: float = 5.0, dice: float = 5.0, num_points: int = 12544
    ) -> None:
        if classification == mask == dice == 0:
            raise SettingError(
                "all weights of the matching cost are 0; set one of criterion.weights to a positive value"
            )
        self.classification, self.mask, self.dice = classification, mask, dice
        self.num_points = num_points

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
        images = zip(predictions.class_logits, predictions.mask_logits, targets, image_ids, strict=True)
        return [
            self._match(self.costs(classes, masks, target, uniform), image_id)
            for classes, masks, target, image_id in images
        ]

    def _match(self, costs: Costs, image_id: int) -> Match:
        total = self.classification * costs.classification + self.mask * costs.mask + self.dice * costs.dice
        matrix = total.cpu()
        if not matrix.isfinite().all():
            bad = [name for name, cost in vars(costs).items() if not cost.isfinite().all()]
            raise NonFiniteError(
                f"image {image_id}: the matching cost ({', '.join(bad)}) is NaN or infinite; {DIVERGED}"
            )
        rows, columns = linear_sum_assignment(matrix.numpy())
        return Match(torch.as_tensor(rows), torch.as_tensor(columns))

    @torch.no_grad()
    def costs(self, class_logits: Tensor, mask_logits: Tensor, target: Targets, uniform: Uniform) -> Costs:
        """Unweighted costs of one image: class logits [Q, K + 1], mask logits [Q, h, w]."""
        with torch.autocast(mask_logits.device.type, enabled=False):
            mask, dice = self.mask_costs(mask_logits.float(), target.masks, uniform)
            return Costs(-class_logits.float().softmax(-1)[:, target.labels], mask, dice)

    def mask_costs(self, logits: Tensor, masks: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        """Mask and dice costs [Q, N] of one image: logits [Q, h, w], masks bool [N, H, W]."""
        points = uniform(1, self.num_points, 2).to(logits.device)
        sampled = point_sample(logits[None], points).squeeze(0)
        truth = sample_masks(masks, points)
        return pairwise_cross_entropy(sampled, truth), pairwise_dice(sampled, truth)
