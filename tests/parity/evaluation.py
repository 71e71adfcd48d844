"""Evaluation cases: every stage from its recorded input, and end to end from the images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from odise_pl.models.classifiers.fusion import fuse, with_no_object
from odise_pl.models.classifiers.text import cosine_logits, max_over_synonyms
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from tests.parity.checks import FLIPPED, FLIPPED_RESULTS, STAGE, Check, compare, worst
from tests.parity.features import Evaluation, feature_checks, window_checks
from tests.parity.models import model_of
from tests.parity.predictions import prediction_checks, use_recorded_thresholds
from tests.parity.records import Case
from tests.parity.results import result_checks

PREDICTOR, CLIP_HEAD = "predictor/0/", "clip_head."
PIXEL = "pixel_decoder/0/"


@torch.no_grad()
def check_evaluation(case: Case, weights: Path | None) -> list[Check]:
    """All checks of an evaluation case."""
    run = Evaluation(case, model_of(case, weights))
    use_recorded_thresholds(run.model, case.tensors)
    return [
        *window_checks(run),
        *feature_checks(run),
        *_head_checks(run),
        *_classifier_checks(run),
        *_end_to_end_checks(run),
    ]


def _end_to_end_checks(run: Evaluation) -> list[Check]:
    stage, model = "end to end", run.model
    images, sizes = run.canvas
    pyramid = model.backbone(images)
    levels = zip(pyramid, _recorded_pyramid(run), strict=True)
    features = model.pixel_decoder(pyramid)
    outputs = model.mask_decoder(features)
    scores = model.classify(outputs[-1], images, sizes, run.classes)
    return [
        *worst(f"{stage}: pyramid", [(f"s{i + 2}", own, held) for i, (own, held) in enumerate(levels)]),
        *_pixel_checks(run, features, stage),
        *prediction_checks(stage, outputs, run.case.tensors, FLIPPED),
        *result_checks(run, stage, scores, outputs[-1].mask_logits, FLIPPED_RESULTS),
    ]


def _head_checks(run: Evaluation) -> list[Check]:
    """Pixel decoder and mask decoder, if their whole input is recorded."""
    checks: list[Check] = []
    pyramid = _recorded_pyramid(run)
    held = [x for x in pyramid if x is not None]
    if len(held) == len(pyramid):
        checks += _pixel_checks(run, run.model.pixel_decoder(held), "pixel decoder (recorded pyramid)")
    mask_features, levels = run.held(PIXEL + "mask_features"), _recorded_levels(run)
    known = [x for x in levels if x is not None]
    if mask_features is None or len(known) < len(levels):
        return checks
    outputs = run.model.mask_decoder(PixelFeatures(mask_features, known))
    stage = "mask decoder (recorded features)"
    return checks + prediction_checks(stage, outputs, run.case.tensors, FLIPPED)


def _recorded_pyramid(run: Evaluation) -> list[Tensor | None]:
    """s2..s5."""
    return [run.held(f"backbone.forward/0/out/s{i}") for i in (2, 3, 4, 5)]


def _recorded_levels(run: Evaluation) -> list[Tensor | None]:
    levels = [run.held(f"{PIXEL}multi_scale_features/{i}") for i in range(3)]
    if levels[0] is None:  # also recorded under another name
        levels[0] = run.held(PIXEL + "transformer_encoder_features")
    return levels


def _pixel_checks(run: Evaluation, features: PixelFeatures, stage: str) -> list[Check]:
    """Mask features and levels."""
    levels = zip(features.levels, _recorded_levels(run), strict=True)
    return [
        *compare(f"{stage}: mask features", features.mask_features, run.held(PIXEL + "mask_features")),
        *worst(f"{stage}: levels", [(f"level {i}", own, held) for i, (own, held) in enumerate(levels)]),
    ]


def _classifier_checks(run: Evaluation) -> list[Check]:
    """Stages between mask embeddings and results whose input is recorded."""
    return [*_text_checks(run), *_diffusion_checks(run), *_clip_checks(run), *_fusion_checks(run)]


def _text_checks(run: Evaluation) -> list[Check]:
    projection, classes = run.model.text_projection, run.classes
    texts, null = projection.proj(classes.mask_text.embeddings), projection.null_embed
    checks: list[Check] = []
    for head in ("category_head", "word_head"):
        checks += compare("texts for the mask embeddings", texts, run.held(f"{head}/0/text_embed"))
    if null is not None:
        checks += compare("no-object text", projection.proj(null), run.held("category_head/0/null_embed"))
    recorded = run.held(CLIP_HEAD + "pred_logits/0/text_embed")
    return checks + compare("texts for masked CLIP", classes.clip_text.embeddings, recorded)


def _diffusion_checks(run: Evaluation) -> list[Check]:
    embed, scale = run.held(PREDICTOR + "mask_embed"), run.held(PREDICTOR + "logit_scale")
    if embed is None or scale is None:
        return []
    text = run.classes.mask_text
    logits = run.model.text_projection(embed, text.embeddings, text.counts, scale)
    return compare("diffusion logits (recorded embeddings)", logits, _recorded_logits(run))


def _recorded_logits(run: Evaluation) -> Tensor | None:
    """Class logits of the mask embeddings; the label model's include no object."""
    label = run.held("cal_pred_logits/0")
    return run.held("cal_pred_open_logits/0") if label is None else label


def _recorded_masks(run: Evaluation) -> Tensor | None:
    """Mask logits in the input of masked CLIP."""
    masks = run.held(CLIP_HEAD + "get_mask_embed/0/mask")
    return run.held(PREDICTOR + "pred_masks") if masks is None else masks


def _clip_checks(run: Evaluation) -> list[Check]:
    images, sizes = run.canvas
    # the original crops all images to the largest size in the batch
    high, wide = (max(side) for side in zip(*sizes, strict=True))
    recorded = run.held(CLIP_HEAD + "get_mask_embed/0/image")
    checks = compare("image for masked CLIP", images[..., :high, :wide], recorded)
    masks = _recorded_masks(run)
    if masks is not None:
        embed = run.model.embed_regions(masks, images, sizes)
        recorded = run.held(CLIP_HEAD + "get_mask_embed/0/mask_embed")
        checks += compare("masked CLIP (recorded masks)", embed, recorded)
    held, text = run.held(CLIP_HEAD + "pred_logits/0/mask_embed"), run.classes.clip_text
    if held is None:
        return checks
    scale = run.model.clip.model.logit_scale.exp().clamp(max=100)
    logits = max_over_synonyms(cosine_logits(held, text.embeddings, scale), text.counts)
    recorded = run.held(CLIP_HEAD + "pred_logits/0/logits")
    return checks + compare("CLIP logits (recorded embeddings)", logits, recorded)


def _fusion_checks(run: Evaluation) -> list[Check]:
    """Fused probabilities, and results of recorded logits and masks."""
    logits, clip = _recorded_logits(run), run.held(CLIP_HEAD + "pred_logits/0/logits")
    recorded = run.held(CLIP_HEAD + "out/0/pred_open_logits")
    if recorded is None:
        return []
    checks: list[Check] = []
    if logits is not None and clip is not None:
        fused = fuse(logits[..., : len(run.classes.isthing)], clip, run.classes.clip_share)
        checks += compare("fusion (recorded logits)", fused, recorded.softmax(-1))
    caption = run.model.mask_decoder.object_head is not None
    objects = run.held(PREDICTOR + "pred_logits") if caption else logits
    masks = run.held(PREDICTOR + "pred_masks")
    if masks is None or objects is None:
        return checks
    final = with_no_object(recorded.softmax(-1), objects.softmax(-1)[..., -1:])
    return checks + result_checks(run, "recorded logits", final, masks, STAGE)
