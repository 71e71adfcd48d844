"""Weights from every kind of source give the same features."""

from __future__ import annotations

import copy
import json
import sys
import types
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import tiny_blip
import tiny_models
import torch
from ldm_names import unet_tensors, vae_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from odise_pl.models.backbones.clip import FrozenCLIP, load_clip
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.stable_diffusion import DiffusionModels, encode_prompts, load_diffusion
from odise_pl.models.blip import load_blip
from odise_pl.models.weights import WeightsError

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
    """The published file: a training checkpoint with pickled callbacks."""
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
    """A hub repository in the client's cache."""
    repository = place / ("models--" + HUB_ID.replace("/", "--"))
    folder(models, repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    for module in list(sys.modules.values()):  # some have their own copy
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
def test_diffusion_features_are_independent_of_source(
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
def test_clip_embeddings_are_independent_of_source(tmp_path: Path, source: str) -> None:
    original = tiny_models.clip()
    path = tmp_path / "clip.safetensors"
    save_file({n: t.contiguous() for n, t in original.model.state_dict().items()}, path)
    weights = str(path)
    if source == "name":
        a = tiny_models.CLIP
        vision = {"image_size": a.image_size, "layers": a.vision_layers, "width": a.vision_width,
                  "head_width": a.vision_head_width, "patch_size": a.patch_size}  # fmt: skip
        text = {"context_length": 77, "vocab_size": 49408, "width": a.text_width, "heads": a.text_heads,
                "layers": a.text_layers}  # fmt: skip
        description = {"embed_dim": a.embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
        (tmp_path / "tiny-of-the-tests.json").write_text(json.dumps(description))
        open_clip.add_model_config(tmp_path / "tiny-of-the-tests.json")
        weights = f"tiny-of-the-tests:{path}"  # open_clip accepts a file as tag
    found = FrozenCLIP(load_clip(weights, tiny_models.CLIP))
    images = torch.rand(2, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    visible = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(1)) > 0.5
    assert torch.equal(found.encode_image(images), original.encode_image(images))
    assert torch.equal(found.encode_text(["a dog", "sky"]), original.encode_text(["a dog", "sky"]))
    masks = (clip.encode_masks(clip.preprocess(images), visible) for clip in (found, original))
    assert torch.equal(*masks)


@pytest.mark.parametrize(("full", "shards"), [((), {}), (("vae",), {"max_shard_size": "200KB"})], ids=str)
def test_half_precision_variants_become_float32(
    tmp_path: Path, full: tuple[str, ...], shards: dict[str, str]
) -> None:
    models = tiny_models.diffusion()
    for name in NETWORKS:
        copy.deepcopy(getattr(models, name)).half().save_pretrained(tmp_path / name, variant="fp16", **shards)
        if name in full:
            getattr(models, name).save_pretrained(tmp_path / name)
    found = load_diffusion(str(tmp_path))
    for name in NETWORKS:
        state, wanted = getattr(found, name).state_dict(), getattr(models, name).state_dict()
        for tensor in wanted:
            rounded = wanted[tensor] if name in full else wanted[tensor].half().to(wanted[tensor].dtype)
            assert state[tensor].dtype == wanted[tensor].dtype
            assert torch.equal(state[tensor], rounded)


def spoil(tensors: dict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    tensors = {n: t.clone() for n, t in tensors.items()}
    tensors[name].view(-1)[-1] = value
    return tensors


ORIGINAL = (
    "model.diffusion_model.out.2.weight",
    "first_stage_model.decoder.conv_out.bias",
    "cond_stage_model.transformer.text_model.final_layer_norm.bias",
)


@pytest.mark.parametrize(("name", "mapped"), zip(ORIGINAL, (True, False, False), strict=True))
def test_non_finite_original_file_is_refused(tmp_path: Path, name: str, mapped: bool) -> None:
    path = tmp_path / "sd.safetensors"
    save_file(spoil(original_tensors(tiny_models.diffusion()), name, float("inf")), path)
    with pytest.raises(WeightsError, match=rf"sd\.safetensors: {name}"):
        load_diffusion(str(path), tiny_models.SD1, mapped)


@pytest.mark.parametrize("name", [*NETWORKS, "blip"])
def test_non_finite_folder_is_refused(tmp_path: Path, name: str) -> None:
    if name == "blip":
        tiny_blip.save(tmp_path / name)
    else:
        folder(tiny_models.diffusion(), tmp_path)
    (path,) = (tmp_path / name).glob("*.safetensors")
    tensors = load_file(path)
    last = sorted(tensors)[-1]
    save_file(spoil(tensors, last, float("nan")), path, {"format": "pt"})
    load = {"blip": lambda: load_blip(str(tmp_path / name))}.get(name, lambda: load_diffusion(str(tmp_path)))
    with pytest.raises(WeightsError, match=rf"{tmp_path}/{name}: .*{last[-12:]}"):
        load()


def test_non_finite_clip_is_refused(tmp_path: Path) -> None:
    """An attention mask in the file, which is infinite, is ignored."""
    path = tmp_path / "clip.pt"
    tensors = {n: t.contiguous() for n, t in tiny_models.clip().model.state_dict().items()}
    mask = torch.full((77, 77), float("-inf")).triu_(1)
    torch.save(tensors | {"attn_mask": mask}, path)
    load_clip(str(path), tiny_models.CLIP)
    torch.save(spoil(tensors, "visual.proj", float("nan")), path)
    with pytest.raises(WeightsError, match=r"clip\.pt: visual\.proj"):
        load_clip(str(path), tiny_models.CLIP)


def test_tokenizer_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_blip.save(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\nclass Evil: ...\n")
    auto = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(auto))
    path = tmp_path / "config.json"
    kind = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | kind))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the user's answer
    with pytest.raises(WeightsError, match=str(tmp_path)):
        load_blip(str(tmp_path))
    assert not (tmp_path / "proof").exists()
