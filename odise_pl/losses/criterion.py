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
from odise_pl.models.ops.points import Uniform, point_sample, uncertain_points
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


@dataclass(frozen=True)
class Denominators:
    """What sums over a batch are divided by, means over all ranks: scalars.

    Attributes:
        masks: number of targets.
        weight: weight of all queries in the classification loss.
    """

    masks: Tensor
    weight: Tensor


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
        labelled: Sequence[bool] | None = None,
    ) -> list[MaskLosses]:
        """Weighted losses of every output, in order.

        The losses of all ranks have the mean that one rank would have with the batches of all.

        Args:
            outputs: the decoder's predictions, in order of depth.
            targets: truth of each image on the canvas.
            uniform: source of random numbers for points.
            image_ids: named in errors.
            labelled: which images count; their queries without a target are taken for "no object". By
                default all do.

        Raises:
            NonFiniteError: a cost or a loss is NaN or infinite.
        """
        kept = [i for i in range(len(targets)) if labelled is None or labelled[i]]
        shown = [targets[i] for i in kept]
        sums = self._denominators(shown, outputs[0])
        if kept:
            outputs = outputs if len(kept) == len(targets) else [_select(o, kept) for o in outputs]
            ids = [image_ids[i] for i in kept]
            losses, error = self._all(outputs, shown, uniform, ids, sums)
        else:
            losses, error = [_nothing(output) for output in outputs], None
        error = error or self._wrong(losses, image_ids)
        if error is not None:
            raise NonFiniteError(str(error), losses)
        return losses

    def _all(
        self,
        outputs: Sequence[MaskPredictions],
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
        sums: Denominators,
    ) -> tuple[list[MaskLosses], NonFiniteError | None]:
        """The losses of all outputs, and the first reason why one could not be matched."""
        losses, first = [], None
        for output in outputs:
            try:
                losses.append(self._one(output, targets, uniform, image_ids, sums))
            except NonFiniteError as error:
                losses.append(_not_a_number(output))
                first = first or error
        return losses, first

    def _denominators(self, targets: Sequence[Targets], output: MaskPredictions) -> Denominators:
        queries, device = output.class_logits.shape[1], output.class_logits.device
        masks = sum(len(target.labels) for target in targets)
        matched = sum(min(len(target.labels), queries) for target in targets)
        weight = matched + self.no_object_weight * (len(targets) * queries - matched)
        # no labelled image on any rank: nothing is divided, by whatever
        return Denominators(average_over_ranks(masks, device), average_over_ranks(weight, device, 1e-6))

    def _one(
        self,
        output: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
        sums: Denominators,
    ) -> MaskLosses:
        matches = self.matcher(output, targets, uniform, image_ids)
        device = output.mask_logits.device
        with torch.autocast(device.type, enabled=False):
            classification = self.classification_loss(
                output.class_logits.float(), targets, matches, sums.weight
            )
            logits = _gather(output.mask_logits, [m.queries for m in matches]).float()
            masks = torch.cat([t.masks[m.targets.to(device)] for t, m in zip(targets, matches, strict=True)])
            mask, dice = self._mask_losses(logits[:, None], masks, uniform, sums.masks)
        return MaskLosses(classification, mask, dice).weighted(self.weights)

    def classification_loss(
        self,
        logits: Tensor,
        targets: Sequence[Targets],
        matches: Sequence[Match],
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """Weighted cross-entropy over all queries: logits [B, Q, K + 1].

        It is divided by ``total_weight``, by default the weights of these queries.
        """
        classes = logits.shape[2] - 1
        wanted = torch.full(logits.shape[:2], classes, dtype=torch.int64, device=logits.device)
        for row, target, match in zip(wanted, targets, matches, strict=True):
            row[match.queries.to(row.device)] = target.labels[match.targets.to(row.device)]
        weight = torch.ones(classes + 1, device=logits.device)
        weight[-1] = self.no_object_weight
        total_weight = weight[wanted].sum() if total_weight is None else total_weight
        return F.cross_entropy(logits.transpose(1, 2), wanted, weight, reduction="sum") / total_weight

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

    def _wrong(self, losses: Sequence[MaskLosses], image_ids: Sequence[int]) -> NonFiniteError | None:
        terms = torch.stack([torch.stack(list(vars(loss).values())).detach() for loss in losses])
        if terms.isfinite().all():
            return None
        layer, term = (~terms.isfinite()).nonzero()[0].tolist()
        name = list(vars(losses[0]))[term]
        return NonFiniteError(
            f"images {list(image_ids)}: the {name} loss of decoder output {layer} is NaN or infinite; "
            + DIVERGED
        )


def _gather(maps: Tensor, queries: Sequence[Tensor]) -> Tensor:
    return torch.cat([image[index.to(image.device)] for image, index in zip(maps, queries, strict=True)])


def _select(output: MaskPredictions, images: Sequence[int]) -> MaskPredictions:
    kept = list(images)
    return MaskPredictions(
        output.class_logits[kept], output.mask_logits[kept], output.mask_embed[kept], output.logit_scale
    )


def _nothing(output: MaskPredictions) -> MaskLosses:
    """No loss, of which every prediction is still a part: data-parallel training waits for all gradients."""
    masks = output.mask_logits.float().sum() * 0
    return MaskLosses(output.class_logits.float().sum() * 0, masks, masks)


def _not_a_number(output: MaskPredictions) -> MaskLosses:
    nothing = _nothing(output)
    return MaskLosses(*(term + math.nan for term in vars(nothing).values()))


def average_over_ranks(number: float, device: torch.device, least: float = 1) -> Tensor:
    """Mean over all ranks, so that the gradients' mean is that of the global batch; at least ``least``."""
    total = torch.tensor(float(number), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total.clamp(min=least)
