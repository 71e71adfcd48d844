"""Training and evaluation, run for real on generated scenes with a small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ROOT, SMALL, composed

from odise_pl.models.weights import read_checkpoint


@pytest.fixture(scope="module")
def run(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random frozen backbone and a fresh head after 30 steps on two generated images."""
    from odise_pl.training.run import train

    folder = tmp_path_factory.mktemp("run")
    fit = ["data.limit_samples=2", "data.epoch_length=400", "trainer.max_steps=30", "validate_every=30"]
    fit += ["criterion.num_points=1024", "data.batch_size=2", "global_batch=2", "optimizer.reference_batch=2"]
    train(composed("train", folder, [*SMALL, *fit, f"data.train={scene_shards}", f"data.val={scene_shards}"]))
    return folder


def test_it_learns(run: Path, scene_shards: Path, tmp_path: Path) -> None:
    from odise_pl.evaluation.run import evaluate

    overrides = ["data=shards", f"data.val={scene_shards}", "data.limit_samples=2", "data.num_workers=0"]
    overrides += ["trainer=cpu", f"ckpt={run / 'checkpoints' / 'last.ckpt'}"]
    result = evaluate(composed("evaluate", tmp_path, overrides), overrides)["val"]
    assert result["pq"] >= 0.7, result
    assert result["miou"] >= 0.7, result


def test_what_a_run_leaves(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    layers = ["", "_0", "_1", "_2"]
    wanted = {f"train/loss_{t}{n}" for t in ("classification", "mask", "dice") for n in layers}
    wanted |= {"train/loss", "train/gradient_norm", "speed/images_per_second", "speed/data_wait_share"}
    wanted |= {"memory/resident_gib", "data/skipped", "val/pq", "val/map", "val/miou"}
    assert wanted <= scalars
    assert any(name.startswith("lr-AdamW") for name in scalars)
    assert len(events.Tags()["images"]) == 2
    assert (run / "results" / "val" / "results.md").is_file()
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    names = set(checkpoint["state_dict"])
    assert "model.mask_decoder.query_feat.weight" in names
    assert not [n for n in names if ".features." in n or ".clip." in n]
    assert checkpoint["odise"]["vocabulary"]["categories"][0]["name"] == "ball"


def test_without_anything_it_says_what_is_missing_before_torch_loads(tmp_path: Path) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['train.py', 'hydra.run.dir={tmp_path}/run', *sys.argv[1:]]\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as error:\n    sys.exit(f'{error.code}\\ntorch: {\"torch\" in sys.modules}')"
    )
    command = [sys.executable, "-c", code, f"paths.weights={tmp_path}/w", f"paths.shards={tmp_path}/s"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for hint in ("odise weights fetch sd-v1-3", "clip", "odise prepare coco", "data.val", "torch: False"):
        assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").iterdir())
