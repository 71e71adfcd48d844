"""Evaluation cases: stage by stage from what is recorded, and end to end from the images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from odise_pl.models.heads.mask_decoder import DecoderOutput
from tests.parity.checks import END_TO_END, STAGE, Check, worst
from tests.parity.classifiers import all_results, classifier_checks, patch_check, recorded_masks
from tests.parity.features import feature_checks, window_checks
from tests.parity.heads import head_checks, mask_checks, pixel_checks, settled
from tests.parity.inputs import REC, Evaluation
from tests.parity.models import WeightFiles, model_of
from tests.parity.records import Case


@torch.no_grad()
def check_evaluation(case: Case, files: WeightFiles) -> list[Check]:
    """All checks of an evaluation case."""
    run = Evaluation(case, model_of(case, files))
    return [
        *window_checks(run),
        *feature_checks(run),
        *head_checks(run),
        *classifier_checks(run),
        *_end_to_end_checks(run),
    ]


def _end_to_end_checks(run: Evaluation) -> list[Check]:
    stage = "end to end"
    images, sizes = run.canvas
    pyramid = run.model.backbone(images)
    recorded = {f"s{i + 2}": run.held(f"{REC}backbone.forward/0/out/s{i + 2}") for i in range(4)}
    pairs = [
        (name, own, x) for own, (name, x) in zip(pyramid, recorded.items(), strict=True) if x is not None
    ]
    checks = worst(f"{stage}: pyramid", pairs, STAGE)
    features = run.model.pixel_decoder(pyramid)
    checks += pixel_checks(run, features, stage)
    outputs = settled(run, features, END_TO_END)
    checks += mask_checks(run, outputs, stage, END_TO_END, END_TO_END)
    shown, patches = _shown_to_clip(run, outputs[-1])
    logits = run.model.classify(replace(outputs[-1], mask_logits=shown), images, sizes, run.classes)
    return checks + patches + all_results(run, stage, logits, outputs[-1].mask_logits, END_TO_END)


def _shown_to_clip(run: Evaluation, output: DecoderOutput) -> tuple[Tensor, list[Check]]:
    """The masks for masked CLIP: the recorded ones if the decision about a patch was close and differs."""
    masks = recorded_masks(run)
    if masks is None:
        return output.mask_logits, []
    check = patch_check(run, output.mask_logits, masks, END_TO_END)
    turned = check.ok and check.difference > 0
    return (masks if turned else output.mask_logits), [check]
