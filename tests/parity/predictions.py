"""Checks of the mask decoder's predictions, with thresholds that do not depend on rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from odise_pl.models.heads.mask_decoder import DecoderOutput, MaskDecoder
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from odise_pl.models.odise import Odise
from tests.parity.checks import Check, Tolerance, worst


class RecordedThresholds(MaskDecoder):
    """A mask decoder that thresholds recorded masks, where given, instead of its own.

    Layers then attend and predictions pool in the same cells as in the original. Errors are still found,
    because our masks are compared with the recorded ones.

    Attributes:
        recorded: mask logits by index of the prediction.
    """

    recorded: Mapping[int, Tensor] = MappingProxyType({})
    _number = -1

    def forward(self, features: PixelFeatures) -> list[DecoderOutput]:
        self._number = -1
        return super().forward(features)

    def pooled_cells(self, mask_logits: Tensor) -> Tensor:
        # called first, once per prediction
        self._number += 1
        return super().pooled_cells(self.recorded.get(self._number, mask_logits))

    def hidden_cells(self, mask_logits: Tensor, size: torch.Size) -> Tensor:
        return super().hidden_cells(self.recorded.get(self._number, mask_logits), size)


def use_recorded_thresholds(model: Odise, recorded: Mapping[str, Tensor]) -> bool:
    """Threshold the recorded masks of a case; returns whether all are recorded."""
    decoder = model.mask_decoder
    assert isinstance(decoder, RecordedThresholds)
    last = len(decoder.layers)
    held = {i: recorded.get(output_place(i, last) + "pred_masks") for i in range(last + 1)}
    decoder.recorded = {i: masks for i, masks in held.items() if masks is not None}
    return len(decoder.recorded) == len(held)


def output_place(index: int, last: int) -> str:
    """Prefix of prediction ``index`` in a record."""
    return "rec/predictor/0/" + ("" if index == last else f"aux_outputs/{index}/")


def prediction_checks(
    stage: str,
    outputs: Sequence[object],
    recorded: Mapping[str, Tensor],
    tolerance: Tolerance,
    objects: str = "object_logits",
) -> list[Check]:
    """Compare predictions with recorded ones; ``objects`` is the field of the object scores."""
    fields = {
        "masks": ("pred_masks", "mask_logits"),
        "mask embeddings": ("mask_embed", "mask_embed"),
        "pooled": ("mask_pooled_features", "pooled"),
        "scale": ("logit_scale", "logit_scale"),
        "objects": ("pred_logits", objects),
    }
    checks, last = list[Check](), len(outputs) - 1
    for what, (name, field) in fields.items():
        pairs = [
            (f"output {i}", own, recorded.get(output_place(i, last) + name))
            for i, output in enumerate(outputs)
            if (own := getattr(output, field, None)) is not None
        ]
        checks += worst(f"{stage}: {what}", pairs, tolerance)
    return checks
