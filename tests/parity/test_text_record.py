"""What the record of texts holds that needs no weights: tokens, CLIP's preprocessing, the noise schedule."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_models
import torch
from safetensors.torch import load_file

from odise_pl.models.backbones.clip import CLIPArchitecture, FrozenCLIP, build_clip
from odise_pl.models.backbones.latent_diffusion import noise_schedule
from odise_pl.models.backbones.stable_diffusion import tokenize
from tests.parity.isolated import RECORDED_CHARACTERS

FIXTURE = Path(__file__).parents[1] / "fixtures" / "isolated_text"
TENSORS = load_file(FIXTURE.with_suffix(".safetensors"))
TEXTS = json.loads(FIXTURE.with_suffix(".json").read_text())["text"]


def test_tokens_are_the_recorded_ones() -> None:
    assert torch.equal(tokenize(TEXTS), TENSORS["hf_tokens"])
    short = [text[:RECORDED_CHARACTERS] for text in TEXTS]
    assert torch.equal(tokenize(short, pad=0), TENSORS["open_clip_tokens"])


def test_clips_preprocessing_is_the_recorded_one() -> None:
    sizes = vars(tiny_models.CLIP) | {"image_size": 112, "patch_size": 14}
    clip = FrozenCLIP(build_clip(CLIPArchitecture(**sizes)))
    found = clip.preprocess(TENSORS["clip_image_in"])
    torch.testing.assert_close(found, TENSORS["clip_preprocessed"], rtol=1e-6, atol=1e-6)


def test_the_noise_schedule_is_the_recorded_one() -> None:
    alphas = noise_schedule()[:5]
    torch.testing.assert_close(alphas.sqrt(), TENSORS["sqrt_alphas_cumprod"], rtol=1e-14, atol=0)
    noise = TENSORS["sqrt_one_minus_alphas_cumprod"]
    torch.testing.assert_close((1 - alphas).sqrt(), noise, rtol=1e-12, atol=0)
