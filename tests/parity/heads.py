"""Pixel decoder and mask decoder of an evaluation case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from odise_pl.models.heads.mask_decoder import DecoderOutput
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from tests.parity.checks import STAGE, Check, compare, worst
from tests.parity.decisions import settle, threshold_check
from tests.parity.inputs import REC, Evaluation, output_place


def head_checks(run: Evaluation) -> list[Check]:
    """Pixel decoder and mask decoder, each where all of its input is recorded."""
    checks: list[Check] = []
    pyramid = [run.held(f"{REC}backbone.forward/0/out/s{i}") for i in (2, 3, 4, 5)]
    held = [x for x in pyramid if x is not None]
    if len(held) == len(pyramid):
        checks += pixel_checks(run, run.model.pixel_decoder(held), "pixel decoder (recorded pyramid)")
    mask_features = run.held(REC + "pixel_decoder/0/mask_features")
    recorded = _recorded_levels(run)
    levels = [x for x in recorded if x is not None]
    if mask_features is None or len(levels) < len(recorded):
        return checks
    features = PixelFeatures(mask_features, levels)
    outputs = settled(run, features, STAGE)
    stage = "mask decoder (recorded features)"
    return checks + mask_checks(run, outputs, stage, STAGE, STAGE)


def _recorded_levels(run: Evaluation) -> list[Tensor | None]:
    levels = [run.held(f"{REC}pixel_decoder/0/multi_scale_features/{i}") for i in range(3)]
    if levels[0] is None:  # recorded under another name too
        levels[0] = run.held(REC + "pixel_decoder/0/transformer_encoder_features")
    return levels


def pixel_checks(run: Evaluation, features: PixelFeatures, stage: str) -> list[Check]:
    """Mask features and levels against the record."""
    checks = compare(
        f"{stage}: mask features", features.mask_features, run.held(REC + "pixel_decoder/0/mask_features")
    )
    pairs = [
        (f"level {i}", own, recorded)
        for i, (own, recorded) in enumerate(zip(features.levels, _recorded_levels(run), strict=True))
        if recorded is not None
    ]
    return checks + worst(f"{stage}: levels", pairs, STAGE)


def settled(run: Evaluation, features: PixelFeatures, tolerance: float) -> list[DecoderOutput]:
    """Decoder outputs; close decisions as recorded, or where masks are not recorded, as fit the record."""
    decoder, last = run.decoder, len(run.decoder.layers)
    decoder.reset()
    masks = {
        i: x for i in range(last + 1) if (x := run.held(output_place(i, last) + "pred_masks")) is not None
    }
    decoder.recorded = masks
    wanted = [
        (i, kind, x)
        for i in range(last + 1)
        for kind, name in (("mask_logits", "pred_masks"), ("mask_embed", "mask_embed"))
        if (x := run.held(output_place(i, last) + name)) is not None
    ]

    def distance(outputs: Sequence[DecoderOutput]) -> Tensor:
        rows = [
            (getattr(outputs[i], kind) - x).abs().flatten(2).amax(2) / (tolerance * x.abs().max())
            for i, kind, x in wanted
        ]
        return torch.stack(rows).amax(0) if rows else torch.zeros(1, 1)

    return settle(decoder, features, distance)


def mask_checks(
    run: Evaluation, outputs: Sequence[DecoderOutput], stage: str, mask_tolerance: float, tolerance: float
) -> list[Check]:
    """All that the record holds of the mask decoder's predictions, with a tolerance of its own for masks."""
    checks = [replace(threshold_check(run.decoder), stage=f"{stage}: thresholds")]
    last = len(outputs) - 1
    for what, field, name, allowed in (
        ("masks", "mask_logits", "pred_masks", mask_tolerance),
        ("mask embeddings", "mask_embed", "mask_embed", tolerance),
        ("pooled", "pooled", "mask_pooled_features", tolerance),
        ("scale", "logit_scale", "logit_scale", STAGE),
        ("objects", "object_logits", "pred_logits", tolerance),
    ):
        pairs = [
            (f"output {i}", getattr(output, field), recorded)
            for i, output in enumerate(outputs)
            if (recorded := run.held(output_place(i, last) + name)) is not None
            and getattr(output, field) is not None
        ]
        checks += worst(f"{stage}: {what}", pairs, allowed)
    return checks
