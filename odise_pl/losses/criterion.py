"""Mask and class losses of every decoder output (Mask2Former, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from odise_pl.errors import check_flag, check_number
from odise_pl.losses.errors import DIVERGED, NonFiniteError
from odise_pl.losses.matcher import HungarianMatcher, Match
from odise_pl.losses.point_losses import paired_cross_entropy, paired_dice, sample_masks
from odise_pl.models.ops.points import Uniform, point_sample, uncertain_points
from odise_pl.structures import MaskPredictions, Targets


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms in the total.

    Attributes:
        classification: of the cross-entropy over classes.
        regions: of the cross-entropy of a trained CLIP over the classes of matched masks (OVRCOAT, arXiv
            2603.21386), a part of the classification loss.
        mask: of the binary cross-entropy at the points of a mask.
        dice: of the dice loss at the points of a mask.
    """

    classification: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    regions: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(f"criterion.weights.{name}", value, whole=False)


@dataclass(frozen=True)
class MaskLosses:
    """Weighted losses of one decoder output, scalars."""

    classification: Tensor
    mask: Tensor
    dice: Tensor


@dataclass(frozen=True)
class Denominators:
    """Denominators of the losses, averaged over all ranks: scalars.

    Attributes:
        masks: number of targets.
        weight: total weight of all queries in the classification loss.
    """

    masks: Tensor
    weight: Tensor


class SetCriterion:
    """Hungarian matching, then classification, point cross-entropy and dice losses.

    Args:
        matcher: assigns queries to targets.
        weights: of the terms.
        no_object_weight: weight of the no-object class in the cross-entropy.
        num_points: points per mask.
        oversample: candidates per point, see :func:`uncertain_points`.
        importance: share of the points that are the most uncertain candidates.
        classify_last: only the last output has a classification loss (MaskCLIP); all are matched by classes.

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
        classify_last: bool = False,
    ) -> None:
        self.matcher, self.weights, self.no_object_weight = matcher, weights, no_object_weight
        self.num_points, self.oversample, self.importance = num_points, oversample, importance
        self.classify_last = classify_last
        check_number("criterion.no_object_weight", no_object_weight, whole=False)
        check_flag("criterion.classify_last", classify_last)
        check_number("criterion.num_points", num_points, 1)
        check_number("criterion.oversample", oversample, 1, whole=False)
        check_number("criterion.importance", importance, 0, whole=False, most=1)

    def __call__(
        self,
        outputs: Sequence[MaskPredictions],
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
        labelled: Sequence[bool] | None = None,
    ) -> list[MaskLosses]:
        """Losses of every output, in order.

        Averaged over the ranks, they are the losses of the global batch.

        Args:
            outputs: the decoder's predictions, in order of depth.
            targets: of each image, on the canvas.
            uniform: source of random numbers for points.
            image_ids: named in errors.
            labelled: False for images without annotations, which are skipped; default: all are labelled.

        Raises:
            NonFiniteError: a cost or a loss is NaN or infinite.
        """
        if labelled is not None and not all(labelled):
            kept = [i for i, flag in enumerate(labelled) if flag]
            outputs = [_select(output, kept) for output in outputs]
            targets, image_ids = [targets[i] for i in kept], [image_ids[i] for i in kept]
        sums = self._denominators(targets, outputs[0])
        losses, errors = [], []
        for output in outputs:
            try:
                losses.append(self._one(output, targets, uniform, image_ids, sums))
            except NonFiniteError as error:
                losses.append(_constant(output, math.nan))
                errors.append(str(error))
        errors += _non_finite_terms(losses, image_ids)
        if self.classify_last:
            losses[:-1] = [replace(one, classification=0 * one.classification) for one in losses[:-1]]
        if errors:
            raise NonFiniteError(errors[0], losses)
        return losses

    def _denominators(self, targets: Sequence[Targets], output: MaskPredictions) -> Denominators:
        queries, device = output.class_logits.shape[1], output.class_logits.device
        masks = sum(len(target.labels) for target in targets)
        matched = sum(min(len(target.labels), queries) for target in targets)
        weight = matched + self.no_object_weight * (len(targets) * queries - matched)
        # without labelled images on any rank, weight and classification loss are 0: 1e-6 avoids 0 / 0
        return Denominators(average_over_ranks(masks, device), average_over_ranks(weight, device, 1e-6))

    def _one(
        self,
        output: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
        sums: Denominators,
    ) -> MaskLosses:
        if not targets:
            return _constant(output, 0)
        matches = self.matcher(output, targets, uniform, image_ids)
        device = output.mask_logits.device
        with torch.autocast(device.type, enabled=False):
            classification = self._classification_loss(output.class_logits.float(), targets, matches)
            queries = [
                logits[m.queries.to(device)] for logits, m in zip(output.mask_logits, matches, strict=True)
            ]
            masks = [t.masks[m.targets.to(device)] for t, m in zip(targets, matches, strict=True)]
            logits = torch.cat(queries).float()[:, None]
            mask, dice = self._mask_losses(logits, torch.cat(masks), uniform, sums.masks)
            classification = classification / sums.weight * self.weights.classification
            if output.clip_logits is not None:
                regions = _region_loss(output.clip_logits, targets, matches)
                classification = classification + regions / sums.masks * self.weights.regions
            return MaskLosses(
                classification,
                mask * self.weights.mask,
                dice * self.weights.dice,
            )

    def _classification_loss(
        self, logits: Tensor, targets: Sequence[Targets], matches: Sequence[Match]
    ) -> Tensor:
        """Weighted cross-entropy summed over all queries: logits [B, Q, K + 1]."""
        classes = logits.shape[2] - 1
        wanted = torch.full(logits.shape[:2], classes, dtype=torch.int64, device=logits.device)
        for row, target, match in zip(wanted, targets, matches, strict=True):
            row[match.queries.to(row.device)] = target.labels[match.targets.to(row.device)]
        weight = torch.ones(classes + 1, device=logits.device)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(logits.transpose(1, 2), wanted, weight, reduction="sum")

    def _mask_losses(
        self, logits: Tensor, masks: Tensor, uniform: Uniform, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of matched pairs over ``count``: logits [N, 1, h, w], masks bool [N, H, W]."""
        if not len(masks):
            nothing = logits.sum() * 0
            return nothing, nothing
        mask, dice = self.paired_losses(logits, masks, uniform)
        return mask.sum() / count, dice.sum() / count

    def paired_losses(self, logits: Tensor, masks: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        """Mask and dice loss [N] of each pair: logits [N, 1, h, w], masks bool [N, H, W]."""
        points = uncertain_points(logits, self.num_points, uniform, self.oversample, self.importance)
        sampled = point_sample(logits, points).squeeze(1)
        truth = sample_masks(masks, points)
        return paired_cross_entropy(sampled, truth), paired_dice(sampled, truth)


def _region_loss(logits: Tensor, targets: Sequence[Targets], matches: Sequence[Match]) -> Tensor:
    """Cross-entropy summed over the matched masks: logits [B, Q, K]."""
    rows = [one[m.queries.to(one.device)] for one, m in zip(logits.float(), matches, strict=True)]
    wanted = [t.labels[m.targets.to(t.labels.device)] for t, m in zip(targets, matches, strict=True)]
    return F.cross_entropy(torch.cat(rows), torch.cat(wanted), reduction="sum")


def _select(output: MaskPredictions, images: Sequence[int]) -> MaskPredictions:
    kept = list(images)
    clip_logits = None if output.clip_logits is None else output.clip_logits[kept]
    of_images = {name: getattr(output, name)[kept] for name in ("class_logits", "mask_logits", "mask_embed")}
    return replace(output, **of_images, clip_logits=clip_logits)


def _constant(output: MaskPredictions, value: float) -> MaskLosses:
    """Constant losses with zero gradients for every prediction: other ranks wait for gradients."""
    masks = output.mask_logits.float().sum() * 0 + value
    return MaskLosses(output.class_logits.float().sum() * 0 + value, masks, masks)


def _non_finite_terms(losses: Sequence[MaskLosses], image_ids: Sequence[int]) -> list[str]:
    terms = torch.stack([torch.stack(list(vars(loss).values())).detach() for loss in losses])
    names = list(vars(losses[0]))
    return [
        f"images {list(image_ids)}: the {names[term]} loss of decoder output {layer} is NaN or infinite; "
        + DIVERGED
        for layer, term in (~terms.isfinite()).nonzero().tolist()
    ]


def average_over_ranks(number: float, device: torch.device, least: float = 1) -> Tensor:
    """Mean of ``number`` over all ranks, at least ``least``; so averaged gradients are the global batch's."""
    total = torch.tensor(float(number), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total.clamp(min=least)
