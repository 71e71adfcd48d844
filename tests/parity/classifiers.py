"""Texts, both classifiers, their fusion and the results of an evaluation case, from recorded embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from odise_pl.models.classifiers import (
    cosine_logits,
    fuse,
    max_over_synonyms,
    squash,
    visible_patches,
    with_no_object,
)
from odise_pl.models.inference import resize_masks
from odise_pl.models.odise import TextClasses
from tests.parity.checks import STAGE, Check, agree_where_decided, compare
from tests.parity.inputs import PREDICTOR, REC, Evaluation
from tests.parity.results import result_checks, segments_of

CLIP_HEAD = REC + "clip_head."


def classifier_checks(run: Evaluation) -> list[Check]:
    """All stages between mask embeddings and class logits, each where its input is recorded."""
    return [*_text_checks(run), *_diffusion_checks(run), *_clip_checks(run), *_fusion_checks(run)]


def _text_checks(run: Evaluation) -> list[Check]:
    model, classes = run.model, run.classes
    texts = model.text_projection.proj(classes.mask_text.embeddings)
    checks: list[Check] = []
    for head in ("category_head", "word_head"):
        checks += compare("texts for the mask embeddings", texts, run.held(f"{REC}{head}/0/text_embed"))
    null = model.text_projection.null_embed
    if null is not None:
        recorded = run.held(REC + "category_head/0/null_embed")
        checks += compare("no-object text", model.text_projection.proj(null), recorded)
    recorded = run.held(CLIP_HEAD + "pred_logits/0/text_embed")
    return checks + compare("texts for masked CLIP", classes.clip_text.embeddings, recorded)


def _diffusion_checks(run: Evaluation) -> list[Check]:
    embed, scale = run.held(PREDICTOR + "mask_embed"), run.held(PREDICTOR + "logit_scale")
    if embed is None or scale is None:
        return []
    text = run.classes.mask_text
    logits = run.model.text_projection(embed, text.embeddings, text.counts, scale)
    stage = "diffusion logits (recorded embeddings)"
    return compare(stage, logits, recorded_logits(run))


def recorded_logits(run: Evaluation) -> Tensor | None:
    """Class logits of the mask embeddings, with the no-object class in the label model."""
    label = run.held(REC + "cal_pred_logits/0")
    return run.held(REC + "cal_pred_open_logits/0") if label is None else label


def recorded_masks(run: Evaluation) -> Tensor | None:
    """Mask logits as masked CLIP saw them."""
    masks = run.held(CLIP_HEAD + "get_mask_embed/0/mask")
    return run.held(PREDICTOR + "pred_masks") if masks is None else masks


def _clip_checks(run: Evaluation) -> list[Check]:
    images, sizes = run.canvas
    masks, text = recorded_masks(run), run.classes.clip_text
    checks = _view_checks(run)
    if masks is not None:
        embed = run.model._clip_mask_embeddings(masks, images, sizes)
        recorded = run.held(CLIP_HEAD + "get_mask_embed/0/mask_embed")
        checks += compare("masked CLIP (recorded masks)", embed, recorded)
    held = run.held(CLIP_HEAD + "pred_logits/0/mask_embed")
    if held is None:
        return checks
    logits = _clip_logits(run, held, text)
    recorded = run.held(CLIP_HEAD + "pred_logits/0/logits")
    return checks + compare("CLIP logits (recorded embeddings)", logits, recorded)


def _view_checks(run: Evaluation) -> list[Check]:
    """The image that masked CLIP is shown: all of it that any image of the batch covers."""
    recorded = run.held(CLIP_HEAD + "get_mask_embed/0/image")
    images, sizes = run.canvas
    high, wide = (max(side) for side in zip(*sizes, strict=True))
    return compare("image for masked CLIP", images[..., :high, :wide], recorded)


def _clip_logits(run: Evaluation, embed: Tensor, text: TextClasses) -> Tensor:
    scale = run.model.clip.model.logit_scale.exp().clamp(max=100)
    return max_over_synonyms(cosine_logits(embed, text.embeddings, scale), text.counts)


def _fusion_checks(run: Evaluation) -> list[Check]:
    """Fused probabilities, and all results from what is recorded just before them."""
    logits, clip = recorded_logits(run), run.held(CLIP_HEAD + "pred_logits/0/logits")
    recorded = run.held(CLIP_HEAD + "out/0/pred_open_logits")
    checks: list[Check] = []
    if logits is not None and clip is not None and recorded is not None:
        classes = len(run.classes.isthing)
        fused = fuse(logits[..., :classes], clip, run.classes.clip_share)
        checks += compare("fusion (recorded logits)", fused, recorded.softmax(-1))
    masks, absent = run.held(PREDICTOR + "pred_masks"), _no_object(run, logits)
    if recorded is None or masks is None or absent is None:
        return checks
    final = with_no_object(recorded.softmax(-1), absent)
    return checks + all_results(run, "recorded logits", final, masks, STAGE)


def _no_object(run: Evaluation, logits: Tensor | None) -> Tensor | None:
    if run.model.mask_decoder.object_head is not None:
        objects = run.held(PREDICTOR + "pred_logits")
        return None if objects is None else objects.softmax(-1)[..., -1:]
    return None if logits is None else logits.softmax(-1)[..., -1:]


def all_results(
    run: Evaluation, stage: str, class_logits: Tensor, mask_logits: Tensor, tolerance: float
) -> list[Check]:
    """Results of every image from logits of the canvas."""
    images, sizes = run.canvas
    checks: list[Check] = []
    for i, valid in enumerate(sizes):
        canvas = (images.shape[2], images.shape[3])
        masks = resize_masks(mask_logits[i], canvas, valid, run.output_size(i))
        prefix = f"out/{i}"
        held = {
            name.rpartition("/")[2]: x
            for name, x in run.case.tensors.items()
            if name.startswith(prefix + "/")
        }
        recorded = {**held, "segments": segments_of(run.case.facts, f"{prefix}/segments_info")}
        checks += result_checks(
            f"image {i} ({stage})", class_logits[i], masks, run.isthing, run.settings, recorded, tolerance
        )
    return checks


def patch_check(run: Evaluation, mask_logits: Tensor, recorded: Tensor, tolerance: float) -> Check:
    """Whether masks show the same patches to CLIP as the recorded ones, but for close decisions."""
    clip = run.model.clip
    ours, theirs = (squash(x, (1.0, 1.0), clip.image_size) for x in (mask_logits, recorded))
    strongest = torch.nn.functional.max_pool2d(ours.sigmoid(), clip.patch_size).flatten(2)
    return agree_where_decided(
        "end to end: patches shown to CLIP",
        visible_patches(ours, clip.patch_size),
        visible_patches(theirs, clip.patch_size),
        (strongest - 0.5).abs() < tolerance,
        "patches",
    )
