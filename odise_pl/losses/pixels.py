"""The loss of dense methods: every labelled pixel has one class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.losses.criterion import Denominators, MaskLosses, SetCriterion, average_over_ranks
from odise_pl.models.ops.points import Uniform
from odise_pl.structures import MaskPredictions, Targets

IGNORED = -100  # pixels that no segment covers


class PixelCriterion(SetCriterion):
    """Mean cross-entropy of the pixels that a segment covers (LSeg, arXiv 2201.03546, section 3.2).

    Class logits of cells are resized (bilinear) to the canvas. The other losses are 0, and the settings of
    masks, points and matching are unused.
    """

    def _denominators(self, targets: Sequence[Targets], output: MaskPredictions) -> Denominators:
        pixels = sum(int(target.masks.any(0).sum()) for target in targets)
        count = average_over_ranks(pixels, output.class_logits.device)
        return Denominators(count, count)

    def _one(
        self,
        output: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
        sums: Denominators,
    ) -> MaskLosses:
        nothing = output.mask_logits.float().sum() * 0  # an output without masks
        if not targets:
            return MaskLosses(output.class_logits.float().sum() * 0, nothing, nothing)
        with torch.autocast(nothing.device.type, enabled=False):
            maps = output.class_logits.float().mT.unflatten(2, output.mask_logits.shape[-2:])
            wanted = torch.stack([label_map(target) for target in targets])
            full = F.interpolate(maps, wanted.shape[-2:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(full, wanted, ignore_index=IGNORED, reduction="sum")
            return MaskLosses(loss / sums.weight * self.weights.classification, nothing, nothing)


def label_map(target: Targets) -> Tensor:
    """The class of each pixel, int64 [H, W]; :data:`IGNORED` where no segment is."""
    labels = torch.full(target.masks.shape[-2:], IGNORED, dtype=torch.int64, device=target.masks.device)
    for label, mask in zip(target.labels, target.masks, strict=True):
        labels[mask] = label
    return labels
