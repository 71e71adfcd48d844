"""Evaluation on the benchmarks of the paper, through the entry point."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_shards import BENCHMARKS, prepare_benchmarks
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]
SMALL = [
    "experiment=laptop",
    "data.num_workers=0",
    "data.augment=none",
    "data.eval_short_side=64",
    "data.eval_long_side=96",
    "backbone.input_size=64",
    "model.head.queries=12",
    "criterion.num_points=256",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress",
]


def composed(name: str, run_dir: Path, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, ["run=test", f"run_dir={run_dir}", *overrides])


@pytest.fixture(scope="module")
def checkpoint(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network after a few steps on scenes, so that it predicts segments of all kinds."""
    import train

    folder = tmp_path_factory.mktemp("trained")
    fit = ["trainer.max_steps=8", "validate_every=100", f"data.train={scene_shards}"]
    train.train(composed("train", folder, [*SMALL, *fit, "~callbacks.report", "~callbacks.pictures"]))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def options(checkpoint: Path, shards: Path, *more: str) -> list[str]:
    return [
        f"ckpt={checkpoint}",
        f"paths.shards={shards}",
        "paths.cache=null",
        "data.num_workers=0",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        *more,
    ]


def run(run_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "evaluate.py"), f"hydra.run.dir={run_dir}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def results(run_dir: Path) -> dict[str, Any]:
    """The JSON of every set of the only evaluation."""
    found = {
        path.parent.name: json.loads(path.read_text()) for path in run_dir.glob("evaluation/*/*/results.json")
    }
    for content in found.values():
        content.pop("about")
    return found


SIX = "data=[coco,ade150,ade847,pc59,pc459,pas21]"


@pytest.fixture(scope="module")
def whole(checkpoint: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six in one command; the predictions are kept."""
    folder = tmp_path_factory.mktemp("whole")
    kept = f"save_predictions={folder / 'predictions'}"
    done = run(folder, *options(checkpoint, shards, SIX, kept))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_six_benchmarks_in_one_command(whole: Path) -> None:
    found = results(whole)
    assert list(BENCHMARKS) == [name for name in BENCHMARKS if name in found]
    classes = {"coco": 133, "ade150": 150, "ade847": 847, "pc59": 59, "pc459": 459, "pas21": 21}
    for name, result in found.items():
        assert (result["images"], result["left_out"]) == (3, 0)
        assert len(result["per_class"]) == classes[name]
        assert (result["panoptic"] is None) == (name not in ("coco", "ade150"))
        assert (result["instances"] is None) == (name not in ("coco", "ade150"))
        assert 0 <= result["semantic"]["miou"] <= 1
    assert any(result["semantic"]["miou"] > 0 for result in found.values())


def test_one_table_with_published_numbers(whole: Path) -> None:
    (folder,) = whole.glob("evaluation/*")
    assert folder.name == "coco+ade150+ade847+pc59+pc459+pas21-both-step_8"
    with (folder / "results.csv").open() as file:
        rows = {row["data"]: row for row in csv.DictReader(file)}
    assert [name for name in rows if "," not in name] == list(BENCHMARKS)
    assert (rows["coco"]["PQ paper"], rows["coco"]["mAP paper"], rows["coco"]["mIoU paper"]) == (
        "55.4",
        "46.0",
        "65.2",
    )
    assert (rows["pas21"]["PQ paper"], rows["pas21"]["PQ"], rows["pas21"]["mIoU paper"]) == ("", "", "84.6")
    written = json.loads((folder / "results.json").read_text())
    assert written["published_percent"]["ade847"] == {"miou": 11.1}
    found = results(whole)
    assert written["scores"] == {name: found[name]["scores"] for name in BENCHMARKS}
    assert "| ade847 |" in (folder / "results.md").read_text()
    assert "mIoU" in (whole / "stdout.txt").read_text()
    assert not (folder / ".progress").exists()
    assert json.loads((folder / "finished.json").read_text())["scores"] == written["scores"]


def test_two_ranks_give_exactly_the_result_of_one(
    whole: Path, checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    """Three images a set on two ranks, in batches of one: the last one is uneven."""
    done = run(tmp_path, *options(checkpoint, shards, SIX, "trainer.devices=2"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path) == results(whole)
