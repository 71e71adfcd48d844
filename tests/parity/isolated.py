"""Cases of single stages: grounding, texts and noun phrases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from odise_pl.losses.grounding import grounding_loss
from odise_pl.models.backbones.clip import FrozenCLIP, load_clip
from odise_pl.models.backbones.diffusion_weights import load_diffusion
from odise_pl.models.backbones.latent_diffusion import noise_schedule
from odise_pl.models.backbones.text_encoders import encode_prompts, tokenize
from tests.parity.checks import LOSS, Check, compare, compare_maps, equal
from tests.parity.models import frozen_files
from tests.parity.records import Case
from tests.parity.sizes import sizes_of

RECORDED_CHARACTERS = 300  # texts were truncated before CLIP's tokenizer in the records


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
        checks += compare(f"loss ({place})", grounding_loss(masks, words, valid, scale), recorded, LOSS)
    return checks


@torch.no_grad()
def check_text(case: Case, weights: Path | None) -> list[Check]:
    """Tokens, both text encoders, CLIP's preprocessing and image embedding, and the noise schedule."""
    held, texts = case.tensors, case.fact("text")
    diffusion, clip_file = frozen_files(case.folder, weights)
    sizes = sizes_of(diffusion)
    encoder = load_diffusion(str(diffusion), sizes.diffusion).text_encoder.eval()
    clip = FrozenCLIP(load_clip(str(clip_file), sizes.clip))
    checks = [
        *token_checks(case),
        *schedule_checks(case),
        *compare("text embedding", encode_prompts(encoder, texts), held.get("ldm_embed")),
        *compare("empty text", encode_prompts(encoder, [""]), held.get("uncond")),
    ]
    recorded, image = held.get("clip_text"), held.get("clip_image_in")
    if recorded is not None:
        checks += compare("CLIP text embedding", clip.encode_text(texts[: len(recorded)]), recorded)
    if image is not None:
        checks += compare("CLIP preprocessing", clip.preprocess(image), held.get("clip_preprocessed"))
        checks += compare("CLIP image embedding", clip.encode_image(image), held.get("clip_image_embed"))
    return checks


def token_checks(case: Case) -> list[Check]:
    """Tokens of both text encoders."""
    texts = case.fact("text")
    short = [text[:RECORDED_CHARACTERS] for text in texts]
    return [
        *compare_maps("tokens of the diffusion model", tokenize(texts), case.tensors.get("hf_tokens")),
        *compare_maps("tokens of CLIP", tokenize(short, pad=0), case.tensors.get("open_clip_tokens")),
    ]


def schedule_checks(case: Case) -> list[Check]:
    """Weights of latent and noise at each step."""
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


def check_noun_phrases(case: Case) -> list[Check]:
    """Noun phrases of texts with recorded part-of-speech tags."""
    from odise_pl.data.noun_phrases import find_phrases

    tags, wrong = case.fact("tags"), list[str]()
    recorded = [
        (text, mode, found) for text, by in case.fact("phrases").items() for mode, found in by.items()
    ]
    for text, mode, found in recorded:
        tagged = [(token, tags.get(token, "NN")) for token in re.findall(r"\w+|[^\w\s]", text)]
        if _collect_as_released(find_phrases(tagged, joined=mode == "prep")) != found:
            wrong.append(f"{text} ({mode})")
    return [equal("noun phrases", len(wrong), len(recorded), "; ".join(wrong[:2]))]


def _collect_as_released(chunks: Iterable[str | None]) -> list[str]:
    """Collect phrases with two faults of the release.

    A phrase at the end of the text is lost, and a repeated phrase is joined with the next.
    """
    phrases: list[str] = []
    pending: list[str] = []
    for chunk in chunks:
        if chunk is not None:
            pending.append(chunk)
        elif pending and " ".join(pending) not in phrases:
            phrases.append(" ".join(pending))
            pending = []
    return phrases
