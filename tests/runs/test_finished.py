from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from odise_pl.runs.finished import find_runs, read_run
from odise_pl.runs.record import AblationSettings, RunError, mark_finished, write_settings

WORDS = AblationSettings("caption", "0+100", False, "implicit", "both", method="odise_caption")
TRAINING: dict[str, Any] = {
    "seed": 3,
    "backbone": {"weights": "w/sd.ckpt"},
    "model": {"queries": 100, "backbone": {"weights": "w/sd.ckpt"}},
    "data": {"train": "t", "val": "v", "eval_short_side": 64, "limit_samples": None, "seed": 3},
    "trainer": {"max_steps": 10, "precision": "32-true"},
    "vocabulary": {"train": None, "eval": None},
    "paths": {"weights": "w"},
}
UNLIMITED = {"trainer.limit_val_batches": "1.0"}


def evaluate(
    folder: Path,
    training: dict[str, Any] | None,
    step: int = 10,
    weights: str = "/moved/sd.ckpt",
    **more: Any,
) -> None:
    """An evaluation on a machine where the weights are elsewhere."""
    settings = {
        "network": {"queries": 100, "backbone": {"weights": weights}},
        "eval_short_side": 64,
        "checkpoint": "sha256",
        "step": step,
        "data": {"val": "v", "limit_samples": None, "scale_range": [0.1, 2.0]},
        "precision": "32-true",
        "paths": {"weights": "/moved"},
        **more,
    }
    write_settings(folder, settings)
    mark_finished(folder, WORDS, {"val": {"pq": 0.5}}, training)


def test_finished_runs_are_found(tmp_path: Path) -> None:
    for seed, name in enumerate(("b", "a")):
        write_settings(tmp_path / name, {"seed": seed, "name": name, "data": {"val": "sets/v", "seed": seed}})
        mark_finished(tmp_path / name, WORDS, {"val": {"pq": 0.25, "map": float("nan")}})
    runs = find_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["a", "b"]
    assert (runs[0].settings, runs[0].scores) == (WORDS, {"val": {"pq": 0.25}})
    assert (runs[0].seed, runs[0].conditions, runs[0].sources) == (
        1,
        UNLIMITED | {"name": "a"},
        {"val": "sets/v"},
    )
    with pytest.raises(RunError, match="no finished run"):
        find_runs(tmp_path / "c")


def test_second_stages_of_a_row_may_start_from_first_stages_of_other_seeds(tmp_path: Path) -> None:
    firsts = [
        {"seed": 0, "size": 3, "lr": 1},
        {"seed": 1, "size": 3, "lr": 1},
        {"seed": 0, "size": 3, "lr": 2},
    ]
    for number, first in enumerate(firsts):
        write_settings(tmp_path / "first" / str(number), first)
        start = {"init_from": f"{tmp_path}/first/{number}"}
        write_settings(tmp_path / "second" / str(number), {"seed": number, "size": 3} | start)
        mark_finished(tmp_path / "second" / str(number), WORDS, {})
    runs = find_runs(tmp_path / "second")
    assert [run.conditions for run in runs] == [
        UNLIMITED | {"size": "3", "init_from.lr": str(lr)} for lr in (1, 1, 2)
    ]


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They do not name the backbone; the settings beside them do."""
    for name, settings in (("a", {"backbone": {"weights": "w/sd-v1-3.ckpt"}}), ("b", {})):
        write_settings(tmp_path / name, settings)
        written = {key: value for key, value in vars(WORDS).items() if key != "backbone"}
        content = {"settings": written, "scores": {"val": {"pq": 0.25}}}
        (tmp_path / name / "finished.json").write_text(json.dumps(content))
    assert [run.settings.backbone for run in find_runs(tmp_path)] == ["stable_diffusion_v1", "unknown"]


@pytest.mark.parametrize("text", ["[]", '{"settings": {"model": "label"}}'])
def test_damaged_finished_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "finished.json").write_text(text)
    with pytest.raises(RunError, match=r"finished\.json"):
        read_run(tmp_path)


def test_newest_scores_of_a_run_count(tmp_path: Path) -> None:
    """Of the training and its evaluations, except those with another classifier."""
    places = [tmp_path, tmp_path / "evaluation" / "a", tmp_path / "evaluation" / "a-2", tmp_path / "other"]
    for pq, folder in enumerate(places):
        folder.mkdir(parents=True, exist_ok=True)
        mark_finished(folder, WORDS, {"val": {"pq": float(pq)}})
        os.utime(folder / "finished.json", (pq, pq))
    for name, words in (("b", WORDS), ("c", replace(WORDS, classifier="diffusion"))):
        (tmp_path / "evaluation" / name).mkdir()
        mark_finished(tmp_path / "evaluation" / name, words, {"ade20k": {"pq": 7.0}})
    runs = {(run.folder, run.settings.classifier): run.scores for run in find_runs(tmp_path)}
    assert runs == {
        (tmp_path, "both"): {"val": {"pq": 2.0}, "ade20k": {"pq": 7.0}},
        (tmp_path, "diffusion"): {"ade20k": {"pq": 7.0}},
        (places[3], "both"): {"val": {"pq": 3.0}},
    }


def test_evaluation_has_the_settings_of_its_training(tmp_path: Path) -> None:
    write_settings(tmp_path, TRAINING)
    mark_finished(tmp_path, WORDS, {"val": {"pq": 0.5}})
    training = read_run(tmp_path)
    evaluate(tmp_path / "evaluation" / "a", None)
    evaluate(tmp_path / "elsewhere" / "evaluation" / "a", TRAINING)
    for place in ("evaluation", "elsewhere/evaluation"):
        run = read_run(tmp_path / place / "a")
        assert (run.seed, run.conditions, run.sources) == (3, training.conditions, {"val": "v"})


@pytest.mark.parametrize(
    ("changed", "key", "value"),
    [
        ({"step": 5}, "step", "5"),
        ({"weights": "random"}, "backbone.weights", "random"),
        ({"limit_val_batches": 2}, "trainer.limit_val_batches", "2"),
    ],
)
def test_evaluation_of_something_else_is_a_run_of_its_own(
    tmp_path: Path, changed: dict[str, Any], key: str, value: str
) -> None:
    write_settings(tmp_path, TRAINING)
    mark_finished(tmp_path, WORDS, {"val": {"pq": 0.5}})
    evaluate(tmp_path / "evaluation" / "a", TRAINING, **changed)
    assert {run.conditions.get(key) == value for run in find_runs(tmp_path)} == {False, True}


def test_seed_is_known_without_the_run_of_a_checkpoint(tmp_path: Path) -> None:
    evaluate(tmp_path / "evaluation" / "a", {"seed": 7})
    evaluate(tmp_path / "evaluation" / "b", {})
    assert [run.seed for run in (read_run(tmp_path / "evaluation" / name) for name in "ab")] == [7, None]
