"""Cases of single stages: losses, grounding, results, texts and noun phrases."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from odise_pl.losses.grounding import grounding_loss
from odise_pl.models.backbones.clip import FrozenCLIP, load_clip
from odise_pl.models.backbones.latent_diffusion import noise_schedule
from odise_pl.models.backbones.stable_diffusion import encode_prompts, load_diffusion, tokenize
from odise_pl.models.weights import read_checkpoint, tensors_of
from tests.parity.architecture import clip_architecture, diffusion_architecture
from tests.parity.checks import LOSS, STAGE, Check, compare, equal, equal_tensors
from tests.parity.models import WeightFiles, frozen_files
from tests.parity.records import Case
from tests.parity.results import result_checks, segments_of, thresholds

RECORDED_CHARACTERS = 300  # the records' CLIP tokens are of texts cut to this length


# Grounding


def check_grounding(case: Case) -> list[Check]:
    """The grounding loss with all words, and with the valid ones only."""
    masks, words, scale = (case.tensor(f"outputs/{n}") for n in ("mask_embed", "word_embed", "logit_scale"))
    checks: list[Check] = []
    for name, recorded in case.tensors.items():
        place, _, what = name.rpartition("/")
        if what != "loss_mask_word":
            continue
        if place == "valid_all":
            valid = torch.ones(words.shape[:2], dtype=torch.bool)
        else:
            valid = case.tensors.get(f"{place}/valid_mask", case.tensor("valid_mask")).bool()
        loss = grounding_loss(masks, words, valid, scale)
        checks += compare(f"loss ({place})", loss, recorded, LOSS)
    return checks


# Results


def check_postprocess(case: Case) -> list[Check]:
    """Semantic, panoptic and instance results of recorded logits."""
    checks: list[Check] = []
    for i in range(case.count("cases")):
        prefix = f"cases/{i}"
        facts = {name.removeprefix(prefix + "/"): value for name, value in case.facts.items()}
        logits, masks = case.tensor(f"{prefix}/mask_cls"), case.tensor(f"{prefix}/mask_pred")
        settings = thresholds(facts)
        recorded = {
            name.removeprefix(prefix + "/"): value
            for name, value in case.tensors.items()
            if name.startswith(prefix + "/")
        }
        recorded_all = {**recorded, "segments": segments_of(case.facts, f"{prefix}/segments_info")}
        isthing = [k in case.fact(f"{prefix}/things") for k in range(logits.shape[1] - 1)]
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
    from odise_pl.data.noun_phrases import chunks

    tags, wrong = case.fact("tags"), list[str]()
    recorded = [
        (text, mode, found) for text, by in case.facts["phrases"].items() for mode, found in by.items()
    ]
    for text, mode, found in recorded:
        tagged = [(token, tags.get(token, "NN")) for token in re.findall(r"\w+|[^\w\s]", text)]
        if _noted_when_followed(chunks(tagged, joined=mode == "prep")) != found:
            wrong.append(f"{text} ({mode})")
    return [equal("noun phrases", len(wrong), len(recorded), "; ".join(wrong[:2]))]


def _noted_when_followed(chunks: Iterable[str | None]) -> list[str]:
    """As the release does it: a phrase is noted when a token outside of phrases follows, so one that ends the
    text is lost; and one that was noted before sticks to the next.
    """
    noted: list[str] = []
    pending: list[str] = []
    for chunk in chunks:
        if chunk is not None:
            pending.append(chunk)
        elif pending and " ".join(pending) not in noted:
            noted.append(" ".join(pending))
            pending = []
    return noted
