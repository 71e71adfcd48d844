"""Cases of single stages: losses, grounding, results, texts and noun phrases."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from odise_pl.backbones.clip import FrozenCLIP, load_clip
from odise_pl.backbones.latent_diffusion import noise_schedule
from odise_pl.backbones.stable_diffusion import encode_prompts, load_diffusion, tokenize
from odise_pl.inference import InferenceSettings
from odise_pl.losses.criterion import LossWeights, MaskLosses, SetCriterion
from odise_pl.losses.grounding import grounding_loss
from odise_pl.ops.points import Uniform, uncertain_points
from odise_pl.parity.architecture import clip_architecture, diffusion_architecture
from odise_pl.parity.checks import LOSS, STAGE, Check, compare, equal, equal_tensors, stacked, worst
from odise_pl.parity.models import WeightFiles, frozen_files
from odise_pl.parity.points import TERMS, NotingMatcher, fixed_criterion, match_check, suffix
from odise_pl.parity.records import Case, RecordError
from odise_pl.parity.results import result_checks, segments_of
from odise_pl.structures import MaskPredictions, Targets
from odise_pl.weights import read_checkpoint, tensors_of

SEED = 0  # of the records' "seed" mode
RECORDED_CHARACTERS = 300  # the records' CLIP tokens are of texts cut to this length


# Losses


def check_criterion(case: Case) -> list[Check]:
    """Costs, matches, losses and gradients of every recorded set of predictions, in every mode."""
    places = [
        name.removesuffix("outputs/pred_masks")
        for name in case.tensors
        if name.endswith("outputs/pred_masks")
    ]
    return [check for place in places for check in _criterion_checks(case, place)]


def _criterion_checks(case: Case, place: str) -> list[Check]:
    pattern = re.compile(re.escape(place) + r"losses_unweighted_(\w+)/")
    modes = dict.fromkeys(m[1] for m in map(pattern.match, case.facts) if m)
    checks = [*_cost_checks(case, place), *_point_checks(case, place)]
    for mode in modes:
        checks += _mode_checks(case, place, mode)
    return checks


def _predictions(case: Case, place: str) -> list[MaskPredictions]:
    """The last prediction first, as the record's losses take them, then the earlier ones."""
    held = case.tensors
    prefixes = [f"{place}outputs/"]
    while f"{place}outputs/aux_outputs/{len(prefixes) - 1}/pred_masks" in held:
        prefixes.append(f"{place}outputs/aux_outputs/{len(prefixes) - 1}/")
    nothing = torch.zeros(())
    return [
        MaskPredictions(
            held[p + "pred_logits"].clone().requires_grad_(),
            held[p + "pred_masks"].clone().requires_grad_(),
            nothing,
            nothing,
        )
        for p in prefixes
    ]


def _targets(case: Case, place: str) -> list[Targets]:
    labels = case.numbered(f"{place}targets", "/labels")
    masks = case.numbered(f"{place}targets", "/masks")
    return [Targets(labels[i], masks[i].bool()) for i in labels]


def _seeded(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(1234 + math.prod(size)))


def _criterion(case: Case, place: str, mode: str) -> tuple[SetCriterion, NotingMatcher, Uniform]:
    matcher_points, loss_points = (case.tensors[f"{place}points_{n}"] for n in ("matcher", "criterion"))
    if mode == "fixed":
        return fixed_criterion(matcher_points, loss_points)
    if mode not in ("rand", "seed"):
        raise RecordError(f"case {case.name}: unknown mode '{mode}' of {place or 'the losses'}")
    count = matcher_points.shape[1]
    matcher = NotingMatcher(count)
    generator = torch.Generator().manual_seed(SEED)
    drawn: Uniform = lambda *size: torch.rand(*size, generator=generator)  # noqa: E731
    return (
        SetCriterion(matcher, LossWeights(), num_points=count),
        matcher,
        (_seeded if mode == "rand" else drawn),
    )


def _mode_checks(case: Case, place: str, mode: str) -> list[Check]:
    criterion, matcher, points = _criterion(case, place, mode)
    outputs, targets = _predictions(case, place), _targets(case, place)
    weighted = criterion(outputs, targets, points, range(len(targets)))
    total = torch.stack([term for loss in weighted for term in vars(loss).values()]).sum()
    total.backward()
    stage = f"{place}{mode}"
    checks = _loss_checks(case, place, mode, weighted)
    recorded = case.facts.get(f"{place}total_weighted_{mode}")
    if recorded is not None:
        checks += compare(f"{stage}: total", total, stacked([recorded])[0], LOSS)
    held = {i: case.tensors.get(f"{place}indices_{mode}/{i}/0") for i in range(len(targets))}
    if all(x is not None for x in held.values()):
        pairs = [
            (case.tensors[f"{place}indices_{mode}/{i}/0"], case.tensors[f"{place}indices_{mode}/{i}/1"])
            for i in held
        ]
        checks.append(match_check(f"{stage}: matches", matcher.noted[:1], [pairs]))
    for name, own in (("pred_logits", outputs[0].class_logits), ("pred_masks", outputs[0].mask_logits)):
        gradient = own.grad if own.grad is not None else torch.zeros_like(own)
        checks += compare(
            f"{stage}: gradient of {name}", gradient, case.tensors.get(f"{place}grad_{mode}/{name}")
        )
    return checks


def _loss_checks(case: Case, place: str, mode: str, weighted: Sequence[MaskLosses]) -> list[Check]:
    weights, last = LossWeights(), len(weighted) - 1
    order = [last, *range(last)]  # predictions as they were computed
    prefix = f"{place}losses_unweighted_{mode}/"
    pairs = [
        (name, getattr(loss, field) / getattr(weights, field), stacked([case.facts[prefix + name]])[0])
        for index, loss in zip(order, weighted, strict=True)
        for kind, field in TERMS.items()
        if prefix + (name := kind + suffix(index, last)) in case.facts
    ]
    return worst(f"{place}{mode}: losses", pairs, LOSS)


def _cost_checks(case: Case, place: str) -> list[Check]:
    held, output = case.tensors, _predictions(case, place)[0]
    _, matcher, _ = _criterion(case, place, "fixed")
    pairs = []
    for i, target in enumerate(_targets(case, place)):
        own = matcher.costs(
            output.class_logits[i], output.mask_logits[i], target, lambda *_: held[f"{place}points_matcher"]
        )
        for name, field in (("class", "classification"), ("mask", "mask"), ("dice", "dice")):
            recorded = held.get(f"{place}cost_fixed/{i}/cost_{name}")
            if recorded is not None:
                pairs.append((f"{name} of image {i}", getattr(own, field), recorded))
    return worst(f"{place}costs", pairs, STAGE)


def _point_checks(case: Case, place: str) -> list[Check]:
    logits = case.tensors.get(f"{place}uncertain_points_rand/logits")
    coords = case.tensors.get(f"{place}uncertain_points_rand/coords")
    if logits is None or coords is None:
        return []
    own = uncertain_points(logits, coords.shape[1], _seeded)
    # topk leaves the order open
    return compare(f"{place}uncertain points", _sorted(own), _sorted(coords))


def _sorted(points: Tensor) -> Tensor:
    keys = (points[..., 0].double() + 2 * points[..., 1].double()).argsort(dim=1)
    return points.gather(1, keys.unsqueeze(2).expand_as(points))


def check_grounding(case: Case) -> list[Check]:
    """The grounding loss with all words, and with the valid ones only."""
    masks, words, scale = (case.tensors[f"outputs/{n}"] for n in ("mask_embed", "word_embed", "logit_scale"))
    valid = case.tensors["valid_mask"].bool()
    checks: list[Check] = []
    for name, words_valid in (("valid_all", torch.ones_like(valid)), ("valid_partial", valid)):
        loss = grounding_loss(masks, words, words_valid, scale)
        checks += compare(f"loss ({name})", loss, case.tensors.get(f"{name}/loss_mask_word"), LOSS)
    return checks


# Results


def check_postprocess(case: Case) -> list[Check]:
    """Semantic, panoptic and instance results of recorded logits."""
    checks: list[Check] = []
    for i in range(case.count("cases")):
        prefix = f"cases/{i}"
        facts = {name.removeprefix(prefix + "/"): value for name, value in case.facts.items()}
        logits, masks = case.tensors[f"{prefix}/mask_cls"], case.tensors[f"{prefix}/mask_pred"]
        settings = InferenceSettings(
            facts["object_mask_threshold"], facts["overlap_threshold"], facts["topk"]
        )
        recorded = {
            name.removeprefix(prefix + "/"): value
            for name, value in case.tensors.items()
            if name.startswith(prefix + "/")
        }
        recorded_all = {**recorded, "segments": segments_of(case.facts, f"{prefix}/segments_info")}
        isthing = [k in facts["things"] for k in range(logits.shape[1] - 1)]
        checks += result_checks(prefix, logits, masks, isthing, settings, recorded_all, STAGE)
    return checks


# Texts


@torch.no_grad()
def check_text(case: Case, files: WeightFiles) -> list[Check]:
    """Tokens, both text encoders, CLIP's preprocessing and image embedding, and the noise schedule."""
    held, texts = case.tensors, case.fact("text")
    diffusion, clip_file = frozen_files(case.folder, files)
    models = load_diffusion(str(diffusion), diffusion_architecture(tensors_of(read_checkpoint(diffusion))))
    clip = FrozenCLIP(load_clip(str(clip_file), clip_architecture(tensors_of(read_checkpoint(clip_file)))))
    encoder = models.text_encoder.eval()
    checks = equal_tensors("tokens of the diffusion model", tokenize(texts), held.get("hf_tokens"))
    short = tokenize([text[:RECORDED_CHARACTERS] for text in texts], pad=0)
    checks += equal_tensors("tokens of CLIP", short, held.get("open_clip_tokens"))
    checks += compare("text embedding", encode_prompts(encoder, texts), held.get("ldm_embed"))
    checks += compare("empty text", encode_prompts(encoder, [""]), held.get("uncond"))
    recorded = held.get("clip_text")
    if recorded is not None:
        checks += compare("CLIP text embedding", clip.encode_text(texts[: len(recorded)]), recorded)
    image = held.get("clip_image_in")
    if image is not None:
        checks += compare("CLIP preprocessing", clip.preprocess(image), held.get("clip_preprocessed"))
        checks += compare("CLIP image embedding", clip.encode_image(image), held.get("clip_image_embed"))
    return checks + _schedule_checks(case)


def _schedule_checks(case: Case) -> list[Check]:
    alphas, checks = noise_schedule(), list[Check]()
    for name, values in (
        ("sqrt_alphas_cumprod", alphas.sqrt()),
        ("sqrt_one_minus_alphas_cumprod", (1 - alphas).sqrt()),
    ):
        recorded = case.tensors.get(name)
        if recorded is not None:
            steps = case.facts.get("timestep_map_head", list(range(len(recorded))))
            checks += compare(f"noise schedule: {name}", values[steps], recorded)
    return checks


# Noun phrases


def check_noun_phrases(case: Case) -> list[Check]:
    """Phrases of texts with recorded parts of speech, as published."""
    from odise_pl.data.noun_phrases import noun_phrases

    tags, wrong = case.fact("tags"), list[str]()
    recorded = [
        (text, mode, found) for text, by in case.facts["phrases"].items() for mode, found in by.items()
    ]
    for text, mode, found in recorded:
        tagged = [(token, tags.get(token, "NN")) for token in re.findall(r"\w+|[^\w\s]", text)]
        if noun_phrases(tagged, joined=mode == "prep", published_quirks=True) != found:
            wrong.append(f"{text} ({mode})")
    return [equal("noun phrases", len(wrong), len(recorded), "; ".join(wrong[:2]))]
