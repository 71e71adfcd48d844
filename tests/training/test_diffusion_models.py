"""Diffusion models of other families in small, from training to evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import save_file
from small_runs import SMALL, composed

from odise_pl.evaluation.run import evaluate
from odise_pl.models.backbones.stable_diffusion import build_unet
from odise_pl.models.weights import read_checkpoint
from odise_pl.training.run import train

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
QUICK = ["validate_every=100", "~callbacks.report", "~callbacks.pictures", "data.batch_size=2"]
QUICK += ["global_batch=2", "data.image_size=64", "criterion.num_points=64", "backbone.weights=random"]
QUICK += ["backbone.window=64", "backbone.channels=128", "data.limit_samples=2"]


def overrides(choice: str, shards: Path, folder: Path) -> list[str]:
    sizes, side, more = FAMILIES[choice]
    places = [f"{'+' * size.startswith('+')}backbone.architecture.{size.lstrip('+')}" for size in sizes]
    data = [f"data.train={shards}", f"data.val={shards}"]
    found = [*SMALL, f"backbone={choice}", *places, f"backbone.input_size={side}", *more, *QUICK, *data]
    if choice.startswith("cleandift"):
        unet = build_unet(instantiate(composed("train", folder, found).backbone.architecture))
        trained = {f"unet_feature_extractor_cleandift.{n}": t for n, t in unet.state_dict().items()}
        save_file(trained | {"timestep": torch.tensor(200.5)}, folder / "full.safetensors")
        found.append(f"backbone.unet={folder / 'full.safetensors'}")
    return found


@pytest.mark.parametrize("choice", FAMILIES)
def test_trains_resumes_and_evaluates(choice: str, scene_shards: Path, tmp_path: Path) -> None:
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    settings = overrides(choice, scene_shards, tmp_path)
    train(composed("train", run, [*settings, "trainer.max_steps=1"]))
    first = read_checkpoint(last)
    train(composed("train", run, [*settings, "trainer.max_steps=2", "ckpt=last"]))
    second = read_checkpoint(last)
    assert (first["global_step"], second["global_step"]) == (1, 2)
    names = set(second["state_dict"])
    assert not [name for name in names if ".features." in name or ".encode." in name]
    assert ("model.backbone.captioner.alpha_cond" in names) == (choice == "ldm_in1k")
    assert any(not torch.equal(second["state_dict"][name], first["state_dict"][name]) for name in names)
    evaluation = [f"ckpt={last}", "data=shards", f"data.val={scene_shards}", "data.limit_samples=1"]
    evaluation += ["data.num_workers=0", "trainer=cpu"]
    scores = evaluate(composed("evaluate", tmp_path / "evaluated", evaluation), evaluation)["val"]
    assert 0 <= scores["pq"] <= 1
