"""The same weights give the same features, wherever they come from."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import tiny_models
import torch
from ldm_names import unet_tensors, vae_tensors
from safetensors.torch import save_file
from torch import Tensor

from odise_pl.backbones.clip import FrozenCLIP, load_clip
from odise_pl.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.backbones.stable_diffusion import DiffusionModels, encode_prompts, load_diffusion

NETWORKS = ("unet", "vae", "text_encoder")
HUB_ID = "someone/tiny-diffusion"


def original_tensors(models: DiffusionModels) -> dict[str, Tensor]:
    names = {n.removeprefix("text_model."): t for n, t in models.text_encoder.state_dict().items()}
    text = {f"cond_stage_model.transformer.text_model.{n}": t for n, t in names.items()}
    tensors = unet_tensors(models.unet) | vae_tensors(models.vae) | text
    return {name: value.contiguous() for name, value in tensors.items()}


def folder(models: DiffusionModels, place: Path) -> str:
    for name in NETWORKS:
        getattr(models, name).save_pretrained(place / name)
    return str(place)


def safetensors_file(models: DiffusionModels, place: Path) -> str:
    save_file(original_tensors(models), place / "sd.safetensors")
    return str(place / "sd.safetensors")


def training_file(models: DiffusionModels, place: Path) -> str:
    """As the authors publish it: everything of the trainer beside the weights, its callbacks pickled."""
    module = types.ModuleType("gone_callbacks")
    callback = type("ModelCheckpoint", (), {"__module__": "gone_callbacks"})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    sys.modules["gone_callbacks"] = module
    state = original_tensors(models) | {"model_ema.decay": torch.tensor(0.9999), "betas": torch.ones(1000)}
    torch.save(
        {
            "epoch": 1,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": state,
            "callbacks": {callback: {"best_model_path": "x"}},
            "optimizer_states": [],
        },
        place / "sd.ckpt",
    )
    del sys.modules["gone_callbacks"]
    return str(place / "sd.ckpt")


def hub_cache(models: DiffusionModels, place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub's repository as the client keeps it after it was fetched once."""
    repository = place / ("models--" + HUB_ID.replace("/", "--"))
    folder(models, repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    for module in list(sys.modules.values()):  # some keep a copy of their own
        if (getattr(module, "__name__", "") or "").startswith(("diffusers.", "transformers.")):
            for name in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
                if name in vars(module):
                    monkeypatch.setattr(module, name, str(place))
    return HUB_ID


@torch.no_grad()
def features(models: DiffusionModels) -> list[Tensor]:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    context = encode_prompts(models.text_encoder.eval(), ["a dog"])
    return [context, *LatentDiffusionFeatures(models, (0, 500))(images, context)]


@pytest.mark.parametrize("source", ["folder", "safetensors", "ckpt", "hub"])
def test_diffusion_weights_of_every_source_give_identical_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    models = tiny_models.diffusion()
    if source == "hub":
        weights = hub_cache(models, tmp_path, monkeypatch)
    else:
        make = {"folder": folder, "safetensors": safetensors_file, "ckpt": training_file}[source]
        weights = make(models, tmp_path)
    found = features(load_diffusion(weights, tiny_models.SD1))
    wanted = features(models)
    assert len(found) == len(wanted) == 13
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("source", ["file", "name"])
def test_clip_weights_of_every_source_give_identical_features(tmp_path: Path, source: str) -> None:
    original = tiny_models.clip()
    path = tmp_path / "clip.safetensors"
    save_file({n: t.contiguous() for n, t in original.model.state_dict().items()}, path)
    weights = str(path)
    if source == "name":
        a = tiny_models.CLIP
        description = {
            "embed_dim": a.embed_dim,
            "quick_gelu": a.quick_gelu,
            "vision_cfg": {
                "image_size": a.image_size,
                "layers": a.vision_layers,
                "width": a.vision_width,
                "head_width": a.vision_head_width,
                "patch_size": a.patch_size,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": a.text_width,
                "heads": a.text_heads,
                "layers": a.text_layers,
            },
        }
        (tmp_path / "tiny-of-the-tests.json").write_text(json.dumps(description))
        open_clip.add_model_config(tmp_path / "tiny-of-the-tests.json")
        weights = f"tiny-of-the-tests:{path}"  # open_clip takes a file for a tag
    found = FrozenCLIP(load_clip(weights, tiny_models.CLIP))
    images = torch.rand(2, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    visible = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(1)) > 0.5
    assert torch.equal(found.encode_image(images), original.encode_image(images))
    assert torch.equal(found.encode_text(["a dog", "sky"]), original.encode_text(["a dog", "sky"]))
    masks = (clip.encode_masks(clip.preprocess(images), visible) for clip in (found, original))
    assert torch.equal(*masks)
