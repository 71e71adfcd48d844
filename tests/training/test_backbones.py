"""Other networks in place of the diffusion model, or beside it, from training to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_timm
from PIL import Image
from small_runs import composed, run_through

from odise_pl.models.weights import read_checkpoint
from odise_pl.prediction.predict import predict
from odise_pl.runs.finished import read_run
from odise_pl.training.run import train

TWO = [
    "backbone=two",
    "backbone@backbone.first=tiny",
    "backbone@backbone.second=timm",
    "backbone.channels=128",
]
TWO += ["backbone.first.input_size=64", "backbone.second.input_size=96"]
TWO += ["+backbone.second.options={depth: 4, embed_dim: 32, num_heads: 2}"]


@pytest.mark.parametrize(
    "family", ["swin", *(pytest.param(f, marks=pytest.mark.slow) for f in tiny_timm.FAMILIES if f != "swin")]
)
def test_networks_of_timm_train_resume_and_evaluate(family: str, scene_shards: Path, tmp_path: Path) -> None:
    settings = ["backbone=timm", *tiny_timm.overrides(family), "backbone.input_size=96"]
    names = run_through(settings, scene_shards, tmp_path)
    assert not [name for name in names if ".captioner." in name]
    done = read_run(tmp_path / "run").settings
    assert (done.timesteps, done.captioner) == ("none", "none")


@pytest.mark.slow
def test_simple_pyramid_trains_and_predicts(scene_shards: Path, tmp_path: Path) -> None:
    settings = ["backbone=timm", *tiny_timm.overrides("vit"), "backbone.input_size=96"]
    settings += ["backbone.pyramid=simple", "model=odise_caption"]
    assert any(".pyramid.scales." in name for name in run_through(settings, scene_shards, tmp_path))
    picture = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)).save(picture)
    assert predict(tmp_path / "run", [str(picture)], "dog,grass:stuff", tmp_path / "out", device="cpu") == []
    assert (tmp_path / "out" / "photo_segments.png").is_file()


def test_two_networks_train_resume_and_evaluate(scene_shards: Path, tmp_path: Path) -> None:
    names = run_through(TWO, scene_shards, tmp_path)
    assert any(".captioner.alpha_cond" in name for name in names)
    for part in "01":
        assert any(f".pyramid.parts.{part}.projections." in name for name in names)
    done = read_run(tmp_path / "run").settings
    assert (done.timesteps, done.captioner) == ("0", "implicit")


@pytest.mark.parametrize("name", ["toy_clip", "toy_supervised_conv", "toy_class_conditional_diffusion"])
def test_heads_of_the_small_world_train_on_members_of_each_kind(
    name: str, scene_shards: Path, tmp_path: Path
) -> None:
    """As in the small world's table, but with random weights."""
    run = tmp_path / "run"
    quick = ["trainer.max_steps=1", "data.batch_size=1", "global_batch=1", "data.num_workers=0"]
    quick += ["data.limit_samples=1"]
    data = [f"data.train={scene_shards}", f"data.val={scene_shards}", "trainer.enable_progress_bar=false"]
    quiet = ["~callbacks.report", "~callbacks.pictures", "~callbacks.progress", "criterion.num_points=64"]
    chosen = ["experiment=toy", f"backbone={name}", "backbone.weights=random"]
    train(composed("train", run, [*chosen, *quick, *data, *quiet]))
    names = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert any(".pyramid.projections." in one for one in names)
    assert not [one for one in names if ".features." in one]
