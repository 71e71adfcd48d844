"""Masks without classes and without matching: every segment trains the mask that fits it best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odise_pl.losses.criterion import Denominators, MaskLosses, SetCriterion
from odise_pl.models.ops.points import Uniform
from odise_pl.structures import MaskPredictions, Targets


class BestMaskCriterion(SetCriterion):
    """The dice loss of each segment's best mask (OpenSeg, arXiv 2112.12143, section 3.2).

    A mask may serve several segments; the others are free. The other losses are 0. Masks are compared at the
    points of the matcher, whose weights are unused.
    """

    def _one(
        self,
        output: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
        sums: Denominators,
    ) -> MaskLosses:
        with torch.autocast(output.mask_logits.device.type, enabled=False):
            masks = output.mask_logits.float()
            nothing = masks.sum() * 0  # other ranks wait for gradients
            best = [self._best(*pair, uniform) for pair in zip(masks, targets, strict=True)]
            return MaskLosses(nothing, nothing, sum(best, nothing) / sums.masks * self.weights.dice)

    def _best(self, logits: Tensor, target: Targets, uniform: Uniform) -> Tensor:
        """Summed over the segments of one image: logits [Q, h, w]."""
        _, dice = self.matcher.mask_costs(logits, target.masks, uniform)
        return dice.amin(0).sum()
