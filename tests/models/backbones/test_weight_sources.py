"""Weights from every kind of source give the same features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_blip
import tiny_models
import torch
from ldm_names import original_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from odise_pl.models.backbones.clip import load_clip
from odise_pl.models.backbones.contract import Conditioning
from odise_pl.models.backbones.diffusion_weights import CLASSES, load_diffusion
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, DiffusionModels
from odise_pl.models.backbones.text_encoders import END_OF_TEXT, PooledTextEncoder, encode_prompts
from odise_pl.models.blip import load_blip
from odise_pl.models.weights import WeightsError


def safetensors_file(models: DiffusionModels, place: Path) -> str:
    save_file(original_tensors(models), place / "sd.safetensors")
    return str(place / "sd.safetensors")


def training_file(models: DiffusionModels, place: Path) -> str:
    """The layout of the published file."""
    state = original_tensors(models) | {"model_ema.decay": torch.tensor(0.9999), "betas": torch.ones(1000)}
    torch.save({"epoch": 1, "state_dict": state, "optimizer_states": []}, place / "sd.ckpt")
    return str(place / "sd.ckpt")


@torch.no_grad()
def features(models: DiffusionModels) -> list[Tensor]:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if models.classes is not None:
        context = models.classes.weight[None, :1]
    elif models.pooled_text_encoder is not None:
        encode = PooledTextEncoder(models.text_encoder, models.pooled_text_encoder, (END_OF_TEXT, 0))
        context = encode(["a dog"])
    else:
        context = encode_prompts(models.text_encoder.eval(), ["a dog"])
    return [context, *LatentDiffusionFeatures(models, (0, 500))(images, Conditioning(context))]


@pytest.mark.parametrize(
    "architecture", [tiny_models.SD1, tiny_models.LDM, tiny_models.XL], ids=["sd1", "ldm", "xl"]
)
@pytest.mark.parametrize("save", [tiny_models.save_diffusion, safetensors_file, training_file])
def test_diffusion_features_are_independent_of_source(
    tmp_path: Path, save: Callable[[DiffusionModels, Path], str], architecture: DiffusionArchitecture
) -> None:
    models = tiny_models.diffusion(architecture)
    found = features(load_diffusion(save(models, tmp_path), architecture))
    wanted = features(models)
    assert len(found) == len(wanted) == 5 + 2 * len(architecture.unet_channels)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("mapped", [False, True])
def test_unet_of_another_file_with_its_learned_step(tmp_path: Path, mapped: bool) -> None:
    """CleanDIFT's files: a UNet in half precision, alone, or beside its teacher and the learned step."""
    base, path = tiny_models.diffusion(), tmp_path / "unet.safetensors"
    other = {n: (t + 0.1).to(torch.bfloat16) for n, t in base.unet.state_dict().items()}
    save_file(other, path)
    loaded = load_diffusion(training_file(base, tmp_path), tiny_models.SD1, mapped, str(path))
    assert loaded.learned_step is None
    assert all(torch.equal(t.float(), other[n].float()) for n, t in loaded.unet.state_dict().items())
    assert torch.equal(loaded.vae.quant_conv.weight, base.vae.quant_conv.weight)
    trained = {f"unet_feature_extractor_cleandift.{n}": t for n, t in other.items()}
    teacher = {f"unet_feature_extractor_base.{n}": t.clone() for n, t in other.items()}
    save_file(trained | teacher | {"timestep": torch.tensor(259.6)}, path)
    full = load_diffusion("random", tiny_models.SD1, mapped, str(path))
    assert full.learned_step == pytest.approx(259.6)
    assert torch.equal(full.unet.conv_in.weight.float(), loaded.unet.conv_in.weight.float())
    with torch.no_grad():
        backbone = LatentDiffusionFeatures(full, (0,), noise=False)
    assert backbone.timesteps == (full.learned_step,)
    assert backbone.taps[2].name == "unet.t260.up.0"
    save_file({"conv_in.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"unet\.safetensors does not fit UNet2DConditionModel"):
        load_diffusion("random", tiny_models.SD1, mapped, str(path))


@pytest.mark.parametrize(("own", "other"), [
    (tiny_models.SD1, tiny_models.LDM),
    (tiny_models.LDM, tiny_models.SD1),
    (tiny_models.SD1, tiny_models.XL),
    (tiny_models.XL, tiny_models.SD1),
])  # fmt: skip
def test_weights_of_another_family_are_named(
    tmp_path: Path, own: DiffusionArchitecture, other: DiffusionArchitecture
) -> None:
    for save in (tiny_models.save_diffusion, safetensors_file):
        with pytest.raises(WeightsError, match=str(tmp_path)):
            load_diffusion(save(tiny_models.diffusion(other), tmp_path), own)


def test_class_conditional_models_need_their_embeddings(tmp_path: Path) -> None:
    folder = tiny_models.save_diffusion(tiny_models.diffusion(tiny_models.LDM), tmp_path)
    (tmp_path / CLASSES).unlink()
    for weights in (folder, "someone/ldm"):
        with pytest.raises(WeightsError, match=rf"backbone\.weights={weights}.*{CLASSES}.*fetch ldm-in1k"):
            load_diffusion(weights, tiny_models.LDM)


def spoil(tensors: dict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    tensors = {n: t.clone() for n, t in tensors.items()}
    tensors[name].view(-1)[-1] = value
    return tensors


@pytest.mark.parametrize("mapped", [False, True])
def test_non_finite_original_file_is_refused(tmp_path: Path, mapped: bool) -> None:
    path, name = tmp_path / "sd.safetensors", "first_stage_model.decoder.conv_out.bias"
    save_file(spoil(original_tensors(tiny_models.diffusion()), name, float("inf")), path)
    with pytest.raises(WeightsError, match=rf"sd\.safetensors: {name}"):
        load_diffusion(str(path), tiny_models.SD1, mapped)


@pytest.mark.parametrize("name", ["vae", "blip"])
def test_non_finite_folder_is_refused(tmp_path: Path, name: str) -> None:
    if name == "blip":
        tiny_blip.save(tmp_path / name)
    else:
        tiny_models.save_diffusion(tiny_models.diffusion(), tmp_path)
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
