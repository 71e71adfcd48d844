"""The training loss of masks and classes at every decoder output (Mask2Former, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.losses.errors import DIVERGED, NonFiniteError
from odise_pl.losses.matcher import HungarianMatcher, Match
from odise_pl.losses.point_losses import paired_cross_entropy, paired_dice, sample_masks
from odise_pl.ops.points import Uniform, point_sample, uncertain_points
from odise_pl.structures import MaskPredictions, Targets


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms in the total."""

    classification: float = 2.0
    mask: float = 5.0
    dice: float = 5.0


@dataclass(frozen=True)
class MaskLosses:
    """Unweighted losses of one decoder output, scalars."""

    classification: Tensor
    mask: Tensor
    dice: Tensor

    def weighted(self, weights: LossWeights) -> MaskLosses:
        """The same terms as they enter the total."""
        return MaskLosses(
            self.classification * weights.classification, self.mask * weights.mask, self.dice * weights.dice
        )


class SetCriterion:
    """Match, then classification, point cross-entropy and dice losses.

    Args:
        matcher: assigns queries to targets.
        weights: of the terms.
        no_object_weight: weight of the no-object class in the cross-entropy.
        num_points: points per mask.
        oversample, importance: of the importance sampling, see :func:`uncertain_points`.

    Raises:
        SettingError: points, oversample or importance are out of range.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        weights: LossWeights,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample: float = 3.0,
        importance: float = 0.75,
    ) -> None:
        self.matcher, self.weights, self.no_object_weight = matcher, weights, no_object_weight
        self.num_points, self.oversample, self.importance = num_points, oversample, importance
        for name, low, high in (
            ("num_points", 1, math.inf),
            ("oversample", 1, math.inf),
            ("importance", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise SettingError(f"criterion.{name}={getattr(self, name)} must lie in {low}..{high}")

    def __call__(
        self,
        outputs: Sequence[MaskPredictions],
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
    ) -> list[MaskLosses]:
        """Weighted losses of every output, in order.

        Args:
            outputs: the decoder's predictions, in order of depth.
            targets: truth of each image on the canvas.
            uniform: source of random numbers for points.
            image_ids: named in errors.

        Raises:
            NonFiniteError: a cost or a loss is NaN or infinite.
        """
        count = average_over_ranks(sum(len(t.labels) for t in targets), outputs[0].mask_logits.device)
        losses = [self._one(output, targets, uniform, image_ids, count) for output in outputs]
        self._check(losses, image_ids)
        return losses

    def _one(
        self,
        output: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
        count: Tensor,
    ) -> MaskLosses:
        matches = self.matcher(output, targets, uniform, image_ids)
        device = output.mask_logits.device
        with torch.autocast(device.type, enabled=False):
            classification = self.classification_loss(output.class_logits.float(), targets, matches)
            logits = _gather(output.mask_logits, [m.queries for m in matches]).float()
            masks = torch.cat([t.masks[m.targets.to(device)] for t, m in zip(targets, matches, strict=True)])
            mask, dice = self._mask_losses(logits[:, None], masks, uniform, count)
        return MaskLosses(classification, mask, dice).weighted(self.weights)

    def classification_loss(
        self, logits: Tensor, targets: Sequence[Targets], matches: Sequence[Match]
    ) -> Tensor:
        """Weighted cross-entropy over all queries: logits [B, Q, K + 1]."""
        classes = logits.shape[2] - 1
        wanted = torch.full(logits.shape[:2], classes, dtype=torch.int64, device=logits.device)
        for row, target, match in zip(wanted, targets, matches, strict=True):
            row[match.queries.to(row.device)] = target.labels[match.targets.to(row.device)]
        weight = torch.ones(classes + 1, device=logits.device)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(logits.transpose(1, 2), wanted, weight)

    def _mask_losses(
        self, logits: Tensor, masks: Tensor, uniform: Uniform, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of matched pairs over ``count``: logits [N, 1, h, w], masks bool [N, H, W]."""
        if not len(masks):
            nothing = logits.sum() * 0
            return nothing, nothing
        points = uncertain_points(logits, self.num_points, uniform, self.oversample, self.importance)
        sampled = point_sample(logits, points).squeeze(1)
        truth = sample_masks(masks, points)
        return paired_cross_entropy(sampled, truth).sum() / count, paired_dice(sampled, truth).sum() / count

    def _check(self, losses: Sequence[MaskLosses], image_ids: Sequence[int]) -> None:
        terms = torch.stack([torch.stack(list(vars(loss).values())).detach() for loss in losses])
        if terms.isfinite().all():
            return
        layer, term = (~terms.isfinite()).nonzero()[0].tolist()
        name = list(vars(losses[0]))[term]
        raise NonFiniteError(
            f"images {list(image_ids)}: the {name} loss of decoder output {layer} is NaN or infinite; "
            + DIVERGED
        )


def _gather(maps: Tensor, queries: Sequence[Tensor]) -> Tensor:
    return torch.cat([image[index.to(image.device)] for image, index in zip(maps, queries, strict=True)])


def average_over_ranks(number: int, device: torch.device) -> Tensor:
    """Mean of a count over all ranks, at least 1, so that the gradients' mean is that of the global batch."""
    total = torch.tensor(float(number), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total.clamp(min=1)
