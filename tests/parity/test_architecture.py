from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
import torch
from ldm_names import unet_tensors, vae_tensors

from odise_pl.checkpoints.io import trainable_state
from odise_pl.models.backbones.clip import CLIPArchitecture, build_clip
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, build_diffusion
from odise_pl.models.build import HeadSettings
from tests.parity.architecture import (
    clip_architecture,
    diffusion_architecture,
    head_settings,
    pyramid_channels,
)
from tests.parity.records import RecordError

TEXT = "cond_stage_model.transformer.text_model."


def original(architecture: DiffusionArchitecture) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        models = build_diffusion(architecture)
    text = {n.removeprefix("text_model."): t for n, t in models.text_encoder.state_dict().items()}
    named = {TEXT + n: t for n, t in text.items()}
    return unet_tensors(models.unet) | vae_tensors(models.vae) | named


def same(one: DiffusionArchitecture, other: DiffusionArchitecture) -> bool:
    def plain(a: DiffusionArchitecture) -> dict[str, object]:
        return {n: list(v) if isinstance(v, tuple | list) else v for n, v in vars(a).items()}

    return plain(one) == plain(other)


SMALL = DiffusionArchitecture(
    unet_channels=(32, 64, 128, 128),
    context_dim=64,
    vae_channels=(32, 64, 128, 128),
    text_width=64,
    text_mlp=128,
    text_layers=2,
    text_heads=4,
)


@pytest.mark.parametrize("architecture", [DiffusionArchitecture(), SMALL], ids=["full", "small"])
def test_a_stable_diffusion_1_file_says_how_large_it_is(architecture: DiffusionArchitecture) -> None:
    assert same(diffusion_architecture(original(architecture)), architecture)


def test_a_stable_diffusion_2_file_says_how_large_it_is() -> None:
    architecture = DiffusionArchitecture(
        heads=[5, 10, 20, 20],
        context_dim=1024,
        linear_projection=True,
        text_width=1024,
        text_mlp=4096,
        text_layers=23,
        text_heads=16,
        text_activation="gelu",
        text_pad=0,
        prediction="v_prediction",
    )
    tensors = {n: t for n, t in original(architecture).items() if not n.startswith(TEXT)}
    tower = CLIPArchitecture(vision_layers=1, text_width=1024, text_layers=24, text_heads=16, embed_dim=1024)
    with torch.device("meta"):
        text = build_clip(tower).state_dict()
    tensors |= {f"cond_stage_model.model.{n}": t for n, t in text.items() if not n.startswith("visual")}
    assert same(diffusion_architecture(tensors), architecture)


@pytest.mark.parametrize(
    "architecture",
    [
        CLIPArchitecture(),
        CLIPArchitecture(112, 14, 128, 3, 64, 128, 2, 2, 64),
        CLIPArchitecture(text_vocabulary=4096, text_length=48),
    ],
    ids=["full", "small", "few words"],
)
def test_a_clip_file_says_how_large_it_is(architecture: CLIPArchitecture) -> None:
    with torch.device("meta"):
        tensors = build_clip(architecture).state_dict()
    assert clip_architecture(tensors) == architecture


@pytest.mark.parametrize("supervision", ["label", "caption"])
def test_a_checkpoint_says_how_large_the_heads_are(supervision: str) -> None:
    state = trainable_state(tiny_models.odise(supervision))
    assert head_settings(state) == tiny_models.HEAD
    assert pyramid_channels(state) == 128


def test_the_published_heads_are_the_default() -> None:
    from odise_pl.models.classifiers import TextProjection
    from odise_pl.models.heads.mask_decoder import MaskDecoder
    from odise_pl.models.heads.pixel_decoder import PixelDecoder

    with torch.device("meta"):
        parts = {
            "pixel_decoder": PixelDecoder(),
            "mask_decoder": MaskDecoder(),
            "text_projection": TextProjection(),
        }
    state = {f"{part}.{n}": t for part, module in parts.items() for n, t in module.state_dict().items()}
    assert head_settings(state) == HeadSettings()
    assert pyramid_channels(state) == 512


def test_weights_that_are_cut_off_are_refused_by_what_is_missing() -> None:
    tensors = original(replace(SMALL))
    without = {n: t for n, t in tensors.items() if "attn2.to_k" not in n}
    with pytest.raises(RecordError, match="attn2"):
        diffusion_architecture(without)
    with pytest.raises(RecordError, match="conv1"):
        clip_architecture({})
