"""The entry points, run for real on generated scenes with a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from trained import ROOT, composed

from odise_pl.models.weights import read_checkpoint

SMALL = [
    "experiment=laptop",
    "data.num_workers=0",
    "data.augment=none",
    "data.eval_short_side=64",
    "data.eval_long_side=64",
    "backbone.input_size=64",
    "model.head.queries=12",
    "criterion.num_points=1024",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress",
]


@pytest.fixture(scope="module")
def shards(scene_shards: Path) -> Path:
    return scene_shards


def options(shards: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.train={shards}", f"data.val={shards}", *more]


def run(script: str, run_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), f"hydra.run.dir={run_dir}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_it_learns(shards: Path, tmp_path: Path) -> None:
    """A random frozen backbone and a fresh head fit four generated images, and evaluate.py says so."""
    from odise_pl.evaluation.run import evaluate
    from odise_pl.training.run import train

    fit = ["data.limit_samples=4", "data.epoch_length=400", "trainer.max_steps=100", "validate_every=90"]
    train(composed("train", tmp_path, options(shards, *fit)))
    ckpt = tmp_path / "checkpoints" / "last.ckpt"
    overrides = [
        f"data.val={shards}",
        "data=shards",
        "data.limit_samples=4",
        "data.num_workers=0",
        "trainer=cpu",
        f"ckpt={ckpt}",
    ]
    result = evaluate(composed("evaluate", tmp_path, overrides), overrides)["val"]
    assert result["pq"] >= 0.7, result
    assert result["miou"] >= 0.7, result
    folder = tmp_path / "evaluation"
    report = folder / f"{shards.name}-both-step_100" / "val" / "results.json"
    written = json.loads(report.read_text())
    assert written["panoptic"]["all"]["pq"] == pytest.approx(result["pq"])
    assert (written["images"], written["left_out"]) == (4, 0)
    # another classifier's report lies beside it, the same one's takes its place
    other = [*overrides, "classifier=diffusion"]
    evaluate(composed("evaluate", tmp_path, other), other)
    before = report.stat().st_mtime_ns
    evaluate(composed("evaluate", tmp_path, overrides), overrides)
    assert report.stat().st_mtime_ns > before
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{shards.name}-{mode}-step_100" for mode in ("both", "diffusion")
    ]


@pytest.fixture(scope="module")
def short_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 6 steps in epochs of 4, validated once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run("train.py", folder, *options(shards, *SHORT))
    assert done.returncode == 0, done.stderr
    return folder


SHORT = [
    "data.batch_size=2",
    "global_batch=2",
    "trainer.max_steps=6",
    "validate_every=5",
    "callbacks.checkpoint.every_n_train_steps=1",
    "data.num_workers=1",
    "data.augment=lsj",
    "data.image_size=64",
    "trainer.log_every_n_steps=1",
]


def test_what_a_run_leaves(short_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(short_run / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    layers = ["", "_0", "_1", "_2"]
    wanted = {f"train/loss_{t}{n}" for t in ("classification", "mask", "dice") for n in layers}
    wanted |= {"train/loss", "train/gradient_norm", "speed/images_per_second", "speed/data_wait_share"}
    wanted |= {"memory/resident_gib", "data/skipped", "val/pq", "val/map", "val/miou"}
    assert wanted <= scalars
    assert any(name.startswith("lr-AdamW") for name in scalars)
    assert len(events.Tags()["images"]) == 4
    assert (short_run / "results" / "val" / "results.md").is_file()


def test_checkpoints_hold_what_is_trained(short_run: Path) -> None:
    checkpoint = read_checkpoint(short_run / "checkpoints" / "last.ckpt")
    names = set(checkpoint["state_dict"])
    assert names
    assert not [n for n in names if ".features." in n or ".clip." in n]
    assert "model.mask_decoder.query_feat.weight" in names
    assert checkpoint["odise"]["vocabulary"]["categories"][0]["name"] == "ball"


def test_without_anything_it_says_what_is_missing(tmp_path: Path) -> None:
    done = run("train.py", tmp_path, f"paths.weights={tmp_path}/w", f"paths.shards={tmp_path}/s")
    assert done.returncode == 1
    for hint in ("hf download CompVis", "clip", "odise prepare coco", "data.val"):
        assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_the_check_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['train.py', 'hydra.run.dir={tmp_path}', 'paths.shards=/nowhere']\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit:\n    sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_evaluate_names_a_missing_checkpoint(shards: Path, tmp_path: Path) -> None:
    done = run("evaluate.py", tmp_path, "ckpt=nothing.ckpt", "data=shards", f"data.val={shards}")
    assert done.returncode == 1
    assert "nothing.ckpt" in done.stderr


def test_a_bad_setting_is_one_line(shards: Path, tmp_path: Path) -> None:
    done = run("train.py", tmp_path, *options(shards, "backbone.timesteps=[1000]"))
    assert done.returncode == 1
    assert "backbone.timesteps=[1000]" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_captioner_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = run("train.py", tmp_path, "captioner=poet")
    assert done.returncode == 1
    for word in ("captioner/poet", "blip", "empty", "heuristic", "implicit"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
