"""Diffusion models of other families in small, from training to evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import save_file
from small_runs import SMALL, composed, run_through

from odise_pl.checkpoints.description import NetworkSettings, read_record
from odise_pl.checkpoints.weights import trainable_parameters
from odise_pl.models.backbones.stable_diffusion import build_unet

_VAE = "+vae_channels=[32,32,32,64]"
_TEXT = ["+text_width=64", "+text_mlp=128", "+text_layers=2", "+text_heads=4"]
_POOLED = [f"+pooled_text.{size}" for size in ("width=32", "mlp=64", "layers=2", "heads=2")]
# By choice in conf/backbone: sizes, side of the network's input, and how it is used.
FAMILIES: dict[str, tuple[list[str], int, list[str]]] = {
    "ldm_in1k": (
        ["unet_channels=[32,32,64,64]", "context_dim=32", "vae_channels=[32,32,64]", "vae_codes=16"],
        96,
        [],
    ),
    "cleandift_sd15": (
        ["+unet_channels=[32,32,64,64]", "+heads=2", "+context_dim=64", _VAE, *_TEXT],
        128,
        ["captioner=empty", "model=odise_caption"],
    ),
    "sdxl": (
        ["unet_channels=[32,64,64]", "transformer_layers=[0,1,2]", "heads=[1,2,4]", "context_dim=96", _VAE,
         *_TEXT, *_POOLED],
        96,
        ["captioner=heuristic", "captioner.vocabulary=[dog,cat]", "captioner.top=1"],
    ),
}  # fmt: skip


def overrides(choice: str, folder: Path) -> list[str]:
    sizes, side, more = FAMILIES[choice]
    places = [f"{'+' * size.startswith('+')}backbone.architecture.{size.lstrip('+')}" for size in sizes]
    sizes = [*places, f"backbone.input_size={side}", "backbone.channels=128"]
    found = [f"backbone={choice}", *sizes, "backbone.weights=random", *more]
    if choice.startswith("cleandift"):
        unet = build_unet(instantiate(composed("train", folder, [*SMALL, *found]).backbone.architecture))
        trained = {f"unet_feature_extractor_cleandift.{n}": t for n, t in unet.state_dict().items()}
        save_file(trained | {"timestep": torch.tensor(200.5)}, folder / "full.safetensors")
        found.append(f"backbone.unet={folder / 'full.safetensors'}")
    return found


@pytest.mark.parametrize("choice", FAMILIES)
def test_only_projections_and_captioner_are_trained(choice: str, tmp_path: Path) -> None:
    config = composed("train", tmp_path, [*SMALL, *overrides(choice, tmp_path)])
    kept = NetworkSettings.of_config(config).record()
    names = trainable_parameters(read_record(kept, "here").build({"weights": ".", "toyworld": "."}))
    assert not [name for name in names if ".encode." in name]
    assert ("backbone.captioner.alpha_cond" in names) == (choice == "ldm_in1k")


@pytest.mark.slow
@pytest.mark.parametrize("choice", FAMILIES)
def test_trains_resumes_and_evaluates(choice: str, scene_shards: Path, tmp_path: Path) -> None:
    names = run_through(overrides(choice, tmp_path), scene_shards, tmp_path)
    assert not [name for name in names if ".encode." in name]
    assert ("model.backbone.captioner.alpha_cond" in names) == (choice == "ldm_in1k")
