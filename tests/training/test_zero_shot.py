"""A network trained on a split, evaluated on all classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import QUICK, SMALL, composed

from odise_pl.evaluation.run import evaluate, score_predictions
from odise_pl.models.weights import read_checkpoint
from odise_pl.runs.finished import find_runs
from odise_pl.training.run import train

UNSEEN = "+data.unseen=[ball,sky]"


def result(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("evaluation/*/coco/results.json")
    content: dict[str, Any] = json.loads(path.read_text())
    content.pop("about")
    return content


@pytest.mark.slow
def test_split_is_recorded_and_measured(scene_shards: Path, tmp_path: Path) -> None:
    """The checkpoint records the seen classes; for predictions, the split tells them."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    shards = [f"data.train={scene_shards}", f"data.val={scene_shards}"]
    scores = train(composed("train", run, [*SMALL, *QUICK, *shards, UNSEEN, "trainer.max_steps=1"]))
    last = run / "checkpoints" / "last.ckpt"
    names = [c["name"] for c in read_checkpoint(last)["odise"]["vocabulary"]["categories"]]
    assert names == ["box", "field"]
    assert "val/miou_harmonic" in scores

    few = ["data=shards", f"data.val={{coco: {scene_shards}}}", "data.limit_samples=2", "data.num_workers=0"]
    few += ["trainer=cpu", "trainer.enable_progress_bar=false"]
    overrides = [*few, f"ckpt={last}", f"save_predictions={kept}"]
    evaluate(composed("evaluate", tmp_path / "a", overrides), overrides)
    found = result(tmp_path / "a")
    assert {row["class"]: row["seen"] for row in found["per_class"]} == {
        "ball": False, "box": True, "sky": False, "field": True,
    }  # fmt: skip
    assert list(found["groups"]) == ["base", "novel", "harmonic"]
    (score,) = (one.scores["coco"] for one in find_runs(tmp_path / "a"))
    assert score["miou_harmonic"] == found["groups"]["harmonic"]["miou"]

    (table,) = tmp_path.glob("a/evaluation/*/results.csv")
    assert "paper" not in table.read_text(), "published numbers are of networks that saw all classes"

    score_predictions(composed("evaluate", tmp_path / "b", [*few, f"predictions={kept}", UNSEEN]))
    assert result(tmp_path / "b") == found
