"""Networks of timm in place of the diffusion model, from training to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_timm
import torch
from PIL import Image
from small_runs import SMALL, composed

from odise_pl.evaluation.run import evaluate
from odise_pl.models.weights import read_checkpoint
from odise_pl.prediction.predict import predict
from odise_pl.runs.conf import CONF
from odise_pl.runs.finished import read_run
from odise_pl.training.run import train


def overrides(family: str, shards: Path, *more: str) -> list[str]:
    size = ["backbone.input_size=96", "backbone.window=64"]
    quick = [
        "validate_every=100",
        "~callbacks.report",
        "~callbacks.pictures",
        "data.batch_size=2",
        "global_batch=2",
        "data.image_size=64",
    ]
    data = [f"data.train={shards}", f"data.val={shards}", "criterion.num_points=64"]
    return [*SMALL, "backbone=timm", *tiny_timm.overrides(family), *size, *quick, *data, *more]


@pytest.mark.parametrize(
    ("family", "more"),
    [
        *((family, ()) for family in tiny_timm.FAMILIES),
        ("vit", ("backbone.pyramid=simple", "model=odise_caption")),
    ],
    ids=str,
)
def test_trains_resumes_and_evaluates(
    family: str, more: tuple[str, ...], scene_shards: Path, tmp_path: Path
) -> None:
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    settings = overrides(family, scene_shards, *more)
    train(composed("train", run, [*settings, "trainer.max_steps=1"]))
    first = read_checkpoint(last)
    train(composed("train", run, [*settings, "trainer.max_steps=2", "ckpt=last"]))
    second = read_checkpoint(last)
    assert (first["global_step"], second["global_step"]) == (1, 2)
    names = set(second["state_dict"])
    assert any(".pyramid.projections." in name for name in names)
    assert any(".pyramid.scales." in name for name in names) == ("backbone.pyramid=simple" in more)
    assert not [name for name in names if ".features." in name or ".captioner." in name]
    assert any(not torch.equal(second["state_dict"][name], first["state_dict"][name]) for name in names)
    assert (read_run(run).settings.timesteps, read_run(run).settings.captioner) == ("none", "none")
    evaluation = [f"ckpt={last}", "data=shards", f"data.val={scene_shards}", "data.limit_samples=1"]
    evaluation += ["data.num_workers=0", "trainer=cpu"]
    assert (
        0 <= evaluate(composed("evaluate", tmp_path / "evaluated", evaluation), evaluation)["val"]["pq"] <= 1
    )
    if family == "vit" and not more:
        picture = tmp_path / "photo.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)).save(picture)
        assert predict(last, [str(picture)], "dog,grass:stuff", tmp_path / "out", device="cpu") == []
        assert (tmp_path / "out" / "photo_segments.png").is_file()


MEMBERS = sorted(path.stem for path in CONF.glob("backbone/toy_*.yaml"))


@pytest.mark.parametrize("name", MEMBERS)
def test_heads_of_the_small_world_train_on_every_member(
    name: str, scene_shards: Path, tmp_path: Path
) -> None:
    """As in the small world's table, but with random weights."""
    run = tmp_path / "run"
    quick = ["trainer.max_steps=1", "data.batch_size=1", "global_batch=1", "data.num_workers=0"]
    data = [f"data.train={scene_shards}", f"data.val={scene_shards}", "trainer.enable_progress_bar=false"]
    quiet = ["~callbacks.report", "~callbacks.pictures", "~callbacks.progress", "criterion.num_points=64"]
    chosen = ["experiment=toy", f"backbone={name}", "backbone.weights=random"]
    train(composed("train", run, [*chosen, *quick, *data, *quiet]))
    names = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert any(".pyramid.projections." in one for one in names)
    assert not [one for one in names if ".features." in one]
