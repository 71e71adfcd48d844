"""The losses of dense methods: every labelled pixel has one class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.losses.criterion import Denominators, MaskLosses, SetCriterion, average_over_ranks
from odise_pl.models.ops.points import Uniform
from odise_pl.structures import MaskPredictions, Targets

IGNORED = -100  # pixels that no segment covers
BANDWIDTHS = (2, 5, 10, 20, 40, 80)  # of the published kernels


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


class FeatureCriterion(PixelCriterion):
    """Distance of generated features of a class from those of its cells (ZS3Net, arXiv 1906.00817).

    Averaged over the classes of each image; the others are 0.
    """

    def _denominators(self, targets: Sequence[Targets], output: MaskPredictions) -> Denominators:
        classes = sum(len(_present(_cells(target, output))) for target in targets)
        count = average_over_ranks(classes, output.mask_embed.device)
        return Denominators(count, count)

    def _one(
        self,
        output: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
        sums: Denominators,
    ) -> MaskLosses:
        assert output.generated is not None
        nothing = output.mask_logits.float().sum() * 0
        distance = output.generated.float().sum() * 0  # other ranks wait for gradients
        with torch.autocast(nothing.device.type, enabled=False):
            for features, target in zip(output.mask_embed.float(), targets, strict=True):
                cells = _cells(target, output)
                for label in _present(cells):
                    made, real = output.generated[label].float(), features[cells == label]
                    drawn = (uniform(len(made)) * len(real)).long()
                    distance = distance + feature_distance(real[drawn], made)
        return MaskLosses(distance / sums.weight * self.weights.classification, nothing, nothing)


def _cells(target: Targets, output: MaskPredictions) -> Tensor:
    """The class of each cell [h * w], that of the nearest pixel."""
    size = output.mask_logits.shape[-2:]
    labels = label_map(target).to(torch.float32)[None, None]
    return F.interpolate(labels, size, mode="nearest-exact").flatten().long()


def _present(cells: Tensor) -> list[int]:
    present: list[int] = cells[cells != IGNORED].unique().tolist()
    return present


def feature_distance(real: Tensor, made: Tensor) -> Tensor:
    """Square root of the maximum mean discrepancy of two samples [N, D], summed over the bandwidths."""
    both = torch.cat([real, made])
    squared = torch.cdist(both, both).square()
    sign = both.new_ones(len(both))
    sign[: len(real)] = -1
    kernel = torch.stack([torch.exp(squared / (-2 * width)) for width in BANDWIDTHS]).sum(0)
    return (sign @ kernel @ sign / (len(real) * len(made))).clamp(min=1e-8).sqrt()
