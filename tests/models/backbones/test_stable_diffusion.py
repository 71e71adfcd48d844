from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from diffusers import UNet2DConditionModel
from ldm_names import unet_tensors, vae_tensors
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones import diffusion_weights
from odise_pl.models.backbones.clip import CLIPArchitecture, build_clip
from odise_pl.models.backbones.diffusion_weights import load_diffusion
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, build_diffusion
from odise_pl.models.backbones.text_encoders import END_OF_TEXT, PooledTextEncoder, encode_prompts, tokenize
from odise_pl.models.weights import WeightsError


@pytest.mark.parametrize("name", ["nowhere.ckpt", "nobody/nothing", "other.safetensors", "folder"])
def test_missing_and_foreign_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    foreign = {"model.diffusion_model.x": torch.zeros(1), "first_stage_model.x": torch.zeros(1)}
    save_file(foreign, tmp_path / "other.safetensors")
    weights = tmp_path / name if (tmp_path / name).exists() else name
    with pytest.raises(WeightsError, match=name):
        load_diffusion(str(weights), tiny_models.SD1)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_incomplete_folder_is_named(tmp_path: Path) -> None:
    tiny_models.save_diffusion(tiny_models.diffusion(), tmp_path)
    (path,) = (tmp_path / "unet").glob("*.safetensors")
    left = {name: tensor for name, tensor in load_file(path).items() if "mid_block" not in name}
    save_file(left, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"{tmp_path}: unet .*mid_block"):
        load_diffusion(str(tmp_path))


def test_mismatching_sizes_are_named() -> None:
    with pytest.raises(WeightsError, match=r"random: the width of the UNet's context.*backbone.architecture"):
        load_diffusion("random", replace(tiny_models.SD1, context_dim=64))


def test_folder_of_another_vocabulary_is_named(tmp_path: Path) -> None:
    tiny_models.save_diffusion(tiny_models.diffusion(), tmp_path)
    with pytest.raises(WeightsError, match=f"{tmp_path}: the text encoder's vocabulary must be 512"):
        load_diffusion(str(tmp_path), replace(tiny_models.SD1, text_vocabulary=512))


@pytest.mark.parametrize("sizes", [{"unet_channels": (30, 64)}, {"vae_groups": 0}])
def test_impossible_sizes_are_named(sizes: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"backbone.architecture: .*\S"):
        load_diffusion("random", replace(tiny_models.SD1, **sizes))


def test_lack_of_memory_is_not_blamed_on_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(diffusion_weights, "build_diffusion", fail)
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"):
        load_diffusion("random", tiny_models.SD1)


def test_inpainting_model_is_refused(tmp_path: Path) -> None:
    tiny_models.save_diffusion(tiny_models.diffusion(), tmp_path)
    wider = dict(tiny_models.diffusion().unet.config) | {"in_channels": 9, "_use_default_values": []}
    UNet2DConditionModel.from_config(wider).save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match=f"{tmp_path}: the UNet's input channels must be 4"):
        load_diffusion(str(tmp_path))


def test_padding_of_tokens() -> None:
    texts = ["", "a dog", "word " * 100]
    first, second = tokenize(texts), tokenize(texts, 0)
    assert first.shape == second.shape == (3, 77)
    assert (first[:, 0] == END_OF_TEXT - 1).all()
    assert (first[0, 1:] == END_OF_TEXT).all()
    assert second[0, 1] == END_OF_TEXT
    assert (second[0, 2:] == 0).all()
    assert torch.equal(first[2], second[2])
    assert first[2, -1] == END_OF_TEXT


@pytest.mark.parametrize("architecture", [tiny_models.SD1, tiny_models.SD2], ids=["sd1", "sd2"])
def test_prompts_are_encoded_by_the_last_layer_and_its_norm(architecture: DiffusionArchitecture) -> None:
    encoder = tiny_models.diffusion(architecture).text_encoder
    texts = ["", "a photo of a dog"]
    encoded = encode_prompts(encoder, texts, architecture.text_pad)
    with torch.no_grad():
        states = encoder(tokenize(texts, architecture.text_pad), output_hidden_states=True)
    normed = F.layer_norm(states.hidden_states[-1], (32,))
    torch.testing.assert_close(encoded, normed, rtol=1e-4, atol=1e-4)
    assert encoded.shape == (2, 77, 32)
    assert not encoded.requires_grad


def test_prompts_of_two_encoders_with_the_pooled_text() -> None:
    models = tiny_models.diffusion(tiny_models.XL)
    encode = PooledTextEncoder(models.text_encoder, models.pooled_text_encoder, (END_OF_TEXT, 0))
    encoded = encode(["", "a photo of a dog"])
    assert encoded.shape == (2, 78, 96)
    assert not encoded[0].any()
    with torch.no_grad():
        first = models.text_encoder(tokenize(["a photo of a dog"]), output_hidden_states=True)
        second = models.pooled_text_encoder(tokenize(["a photo of a dog"], 0), output_hidden_states=True)
    torch.testing.assert_close(encoded[1:, :77, :32], first.hidden_states[1])
    torch.testing.assert_close(encoded[1:, :77, 32:], second.hidden_states[1])
    torch.testing.assert_close(encoded[1:, 77, :64], second.text_embeds)
    assert not encoded[1, 77, 64:].any()


def test_original_file_of_stable_diffusion_2(tmp_path: Path) -> None:
    """OpenCLIP text encoder without its last layer, heads per level, linear projections."""
    architecture = replace(tiny_models.SD2, text_layers=23, text_mlp=128)
    torch.manual_seed(0)
    sizes = {"vision_layers": 1, "text_layers": 24, "quick_gelu": False}
    clip = build_clip(CLIPArchitecture(**{**vars(tiny_models.CLIP), **sizes}))
    tower = {n: t for n, t in clip.state_dict().items() if not n.startswith("visual")}
    models = build_diffusion(architecture)
    text = {f"cond_stage_model.model.{n}": t for n, t in tower.items()}
    path = tmp_path / "sd2.safetensors"
    tensors = unet_tensors(models.unet) | vae_tensors(models.vae) | text
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    loaded = load_diffusion(str(path), architecture)
    assert same(loaded.unet, models.unet)
    assert same(loaded.vae, models.vae)
    with torch.no_grad():
        x = clip.token_embedding(tokenize(["a dog"], 0)) + clip.positional_embedding
        for block in clip.transformer.resblocks[:-1]:
            x = block(x, attn_mask=clip.attn_mask)
        encoded = encode_prompts(loaded.text_encoder.eval(), ["a dog"], 0)
        torch.testing.assert_close(encoded, clip.ln_final(x), rtol=1e-4, atol=1e-4)
