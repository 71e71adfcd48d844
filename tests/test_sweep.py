"""Sweeps with a small model: every setting trains, finished runs are skipped, a report gathers them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    "data.num_workers=0",
    "data.augment=none",
    "data.limit_samples=2",
    "data.batch_size=2",
    "data.eval_short_side=64",
    "data.eval_long_side=64",
    "global_batch=2",
    "backbone.input_size=64",
    "model.head.queries=12",
    "criterion.num_points=256",
    "trainer.max_steps=1",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress",
    "~callbacks.pictures",
]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def sweep(shards: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    data = [f"data.train={shards}", f"data.val={shards}", f"hydra.sweep.dir={folder}"]
    return run("train.py", *TINY, *data, *arguments)


def markers(folder: Path) -> dict[str, float]:
    """When each run of a sweep came to its end."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.rglob("finished.json")}


GRID = [
    "experiment=[laptop,ablation_timestep]",
    "backbone.timesteps=[0],learnable",
    "captioner=empty,heuristic",
]


@pytest.fixture(scope="module")
def swept(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps by two captioners."""
    folder = tmp_path_factory.mktemp("sweep")
    done = sweep(scene_shards, folder, *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_setting_leaves_a_finished_run(swept: Path) -> None:
    wanted = {f"captioner={c},timesteps={t}" for c in ("empty", "heuristic") for t in ("[0]", "learnable")}
    assert set(markers(swept)) == wanted
    content = json.loads((swept / "captioner=empty,timesteps=learnable" / "finished.json").read_text())
    assert content["settings"] == {
        "model": "label", "timesteps": "learnable", "learnable_time": True, "captioner": "empty",
        "classifier": "both",
    }  # fmt: skip
    assert 0 <= content["scores"]["val"]["pq"] <= 1


def test_finished_runs_are_skipped_and_others_go_on(swept: Path, scene_shards: Path) -> None:
    before = markers(swept)
    stopped = swept / "captioner=empty,timesteps=[0]"
    (stopped / "finished.json").unlink()  # as if it had been stopped after its last checkpoint
    done = sweep(scene_shards, swept, *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is finished: skipped") == 3
    after = markers(swept)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {stopped.name}


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(swept: Path, scene_shards: Path) -> None:
    done = sweep(scene_shards, swept, *GRID, "optimizer.lr=0.5")
    assert done.returncode == 1
    assert "holds a finished run with other settings; name another with run=NAME" in done.stderr
