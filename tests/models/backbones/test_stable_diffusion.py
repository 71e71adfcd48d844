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
from torch import Tensor, nn

from odise_pl.models.backbones.clip import CLIPArchitecture, build_clip
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.stable_diffusion import (
    _TEXT_BUFFERS,
    END_OF_TEXT,
    DiffusionArchitecture,
    DiffusionModels,
    _convert_text,
    build_diffusion,
    encode_prompts,
    load_diffusion,
    tokenize,
)
from odise_pl.models.weights import WeightsError, load_exactly

GENERATIONS = pytest.mark.parametrize("architecture", [tiny_models.SD1, tiny_models.SD2], ids=["sd1", "sd2"])
NETWORKS = ("unet", "vae", "text_encoder")


def save_folder(models: DiffusionModels, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    for name in NETWORKS:
        network = getattr(models, name)
        weights = {n: t.clone() for n, t in network.state_dict().items()}
        network.to(dtype).save_pretrained(folder / name)
        network.float().load_state_dict(weights)
    return folder


def damage(folder: Path, network: str, without: str) -> None:
    """Take the tensors whose names hold ``without`` out of a saved network."""
    path = next((folder / network).glob("*.safetensors"))
    tensors = load_file(path)
    left = {n: t for n, t in tensors.items() if without not in n}
    assert len(left) < len(tensors)
    save_file(left, path, metadata={"format": "pt"})


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@GENERATIONS
def test_a_diffusers_folder_gives_back_the_networks_that_were_saved(
    tmp_path: Path, architecture: DiffusionArchitecture
) -> None:
    models = tiny_models.diffusion(architecture)
    loaded = load_diffusion(str(save_folder(models, tmp_path)))
    for name in NETWORKS:
        assert same(getattr(loaded, name), getattr(models, name)), name


def test_a_folder_in_half_precision_is_loaded_in_full(tmp_path: Path) -> None:
    models = build_diffusion(tiny_models.SD1)
    loaded = load_diffusion(str(save_folder(models, tmp_path, torch.float16)))
    for name in NETWORKS:
        network = getattr(loaded, name)
        assert {p.dtype for p in network.parameters()} == {torch.float32}, name
        rounded = {n: t.half().float() for n, t in getattr(models, name).named_parameters()}
        assert all(torch.equal(p, rounded[n]) for n, p in network.named_parameters()), name


@pytest.mark.parametrize(("network", "part"), [("unet", "mid_block"), ("vae", "post_quant_conv"),
                                               ("text_encoder", "final_layer_norm")])  # fmt: skip
def test_a_folder_that_lacks_tensors_is_refused_by_name(tmp_path: Path, network: str, part: str) -> None:
    damage(save_folder(tiny_models.diffusion(), tmp_path), network, part)
    with pytest.raises(WeightsError, match=f"from the folder {tmp_path}: {network} lacks .*{part}"):
        load_diffusion(str(tmp_path))


def test_a_truncated_folder_is_refused_by_name(tmp_path: Path) -> None:
    path = next((save_folder(tiny_models.diffusion(), tmp_path) / "vae").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=f"cannot load a diffusion model from the folder {tmp_path}"):
        load_diffusion(str(tmp_path))


def test_an_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"cannot load a diffusion model from the folder {tmp_path}"):
        load_diffusion(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere.ckpt", "./nowhere", "/nowhere/at/all"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(WeightsError, match=f"diffusion weights not found: {name}"):
        load_diffusion(name)


def test_a_hub_id_that_cannot_be_had_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="from the hub id nobody/nothing"):
        load_diffusion("nobody/nothing")


def test_a_file_that_is_no_stable_diffusion_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"model.diffusion_model.x": torch.zeros(1), "first_stage_model.x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"other\.safetensors is not an original .* it has no cond_stage"):
        load_diffusion(str(path), tiny_models.SD1)


@pytest.mark.parametrize(("change", "message"), [
    ({"vae_channels": (32, 32, 64)}, "the VAE's levels should be 4 and is 3"),
    ({"context_dim": 64}, "the width of the UNet's context should be 32 and is 64"),
])  # fmt: skip
def test_sizes_that_do_not_fit_together_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=f"random: {message}.*backbone.architecture"):
        load_diffusion("random", replace(tiny_models.SD1, **change))


def test_an_inpainting_model_is_refused_by_name(tmp_path: Path) -> None:
    save_folder(tiny_models.diffusion(), tmp_path)
    wider = dict(tiny_models.diffusion().unet.config) | {"in_channels": 9, "_use_default_values": []}
    UNet2DConditionModel.from_config(wider).save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match=f"{tmp_path}: the UNet's input channels should be 4 and is 9"):
        load_diffusion(str(tmp_path))


def test_random_weights_come_from_the_global_generator() -> None:
    torch.manual_seed(5)
    first = load_diffusion("random", tiny_models.SD1)
    torch.manual_seed(5)
    second, third = (load_diffusion("random", tiny_models.SD1) for _ in range(2))
    for name in NETWORKS:
        assert same(getattr(first, name), getattr(second, name))
        assert not same(getattr(first, name), getattr(third, name))


def test_tokens_are_padded_as_each_generation_wants() -> None:
    texts = ["", "a dog", "word " * 100]
    first, second = tokenize(texts), tokenize(texts, 0)
    assert first.shape == second.shape == (3, 77)
    assert (first[:, 0] == END_OF_TEXT - 1).all()
    assert (first[0, 1:] == END_OF_TEXT).all()
    assert second[0, 1] == END_OF_TEXT
    assert (second[0, 2:] == 0).all()
    assert torch.equal(first[2], second[2])
    assert first[2, -1] == END_OF_TEXT


@GENERATIONS
def test_prompts_are_encoded_by_the_last_layer_and_its_norm(architecture: DiffusionArchitecture) -> None:
    encoder = tiny_models.diffusion(architecture).text_encoder
    texts = ["", "a photo of a dog"]
    encoded = encode_prompts(encoder, texts, architecture.text_pad)
    with torch.no_grad():
        states = encoder(tokenize(texts, architecture.text_pad), output_hidden_states=True)
    last: Tensor = states.hidden_states[-1]
    centred = last - last.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(encoded, normed, rtol=1e-4, atol=1e-4)
    assert encoded.shape == (2, 77, 32)
    assert not encoded.requires_grad


def test_text_weights_of_stable_diffusion_2_are_open_clips_without_its_last_layer() -> None:
    """An original SD 2 checkpoint holds an OpenCLIP text tower of 24 layers; 23 of them are used."""
    torch.manual_seed(0)
    sizes = {"vision_layers": 1, "text_layers": 24, "quick_gelu": False}
    clip = build_clip(CLIPArchitecture(**{**vars(tiny_models.CLIP), **sizes}))
    tower = {n: t for n, t in clip.state_dict().items() if not n.startswith("visual")}
    named = {f"cond_stage_model.model.{n}": t for n, t in tower.items()}
    encoder = build_diffusion(replace(tiny_models.SD2, text_layers=23, text_mlp=128)).text_encoder.eval()
    load_exactly(encoder, _convert_text(encoder, named), "test", ignore=_TEXT_BUFFERS)

    texts = ["", "a photo of a dog"]
    with torch.no_grad():
        x = clip.token_embedding(tokenize(texts, 0)) + clip.positional_embedding
        for block in clip.transformer.resblocks[:-1]:
            x = block(x, attn_mask=clip.attn_mask)
        torch.testing.assert_close(encode_prompts(encoder, texts, 0), clip.ln_final(x), rtol=1e-4, atol=1e-4)


def test_the_defaults_are_stable_diffusion_1() -> None:
    with torch.device("meta"):
        models = build_diffusion(DiffusionArchitecture())
    sizes = [sum(p.numel() for p in getattr(models, name).parameters()) for name in NETWORKS]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]
    assert DiffusionArchitecture().time_dim == 1280


def original_file(models: DiffusionModels, text: dict[str, Tensor], path: Path) -> Path:
    """A single-file checkpoint as the authors of Stable Diffusion write it."""
    tensors = unet_tensors(models.unet) | vae_tensors(models.vae) | text
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def test_an_original_file_of_stable_diffusion_1_gives_back_its_networks(tmp_path: Path) -> None:
    models = tiny_models.diffusion(tiny_models.SD1)
    names = {n.removeprefix("text_model."): t for n, t in models.text_encoder.state_dict().items()}
    text = {f"cond_stage_model.transformer.text_model.{n}": t for n, t in names.items()}
    path = original_file(models, text, tmp_path / "sd1.safetensors")
    loaded = load_diffusion(str(path), tiny_models.SD1)
    assert all(same(getattr(loaded, name), getattr(models, name)) for name in NETWORKS)


def test_an_original_file_of_stable_diffusion_2_gives_back_its_networks(tmp_path: Path) -> None:
    """Text by OpenCLIP, heads per level, Linear around transformers, v-prediction: all by configuration."""
    architecture = replace(tiny_models.SD2, text_layers=23, text_mlp=128)
    assert architecture.prediction == "v_prediction"
    torch.manual_seed(0)
    sizes = {"vision_layers": 1, "text_layers": 24, "quick_gelu": False}
    clip = build_clip(CLIPArchitecture(**{**vars(tiny_models.CLIP), **sizes}))
    tower = {n: t for n, t in clip.state_dict().items() if not n.startswith("visual")}
    models = build_diffusion(architecture)
    text = {f"cond_stage_model.model.{n}": t for n, t in tower.items()}
    path = original_file(models, text, tmp_path / "sd2.safetensors")
    loaded = load_diffusion(str(path), architecture)
    assert same(loaded.unet, models.unet)
    assert same(loaded.vae, models.vae)
    with torch.no_grad():
        x = clip.token_embedding(tokenize(["a dog"], 0)) + clip.positional_embedding
        for block in clip.transformer.resblocks[:-1]:
            x = block(x, attn_mask=clip.attn_mask)
        encoded = encode_prompts(loaded.text_encoder.eval(), ["a dog"], 0)
        torch.testing.assert_close(encoded, clip.ln_final(x), rtol=1e-4, atol=1e-4)


def test_the_prediction_type_does_not_change_features() -> None:
    """Features are read before the UNet's output, whatever it stands for."""
    kinds = [replace(tiny_models.SD2, prediction=kind) for kind in ("epsilon", "v_prediction")]
    one, other = (tiny_models.diffusion(kind) for kind in kinds)
    images, context = torch.rand(1, 3, 64, 64), torch.rand(1, 77, 32)
    features = [LatentDiffusionFeatures(models, (100,))(images, context) for models in (one, other)]
    assert all(torch.equal(a, b) for a, b in zip(*features, strict=True))
