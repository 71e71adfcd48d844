"""Lightning's loggers, each one word."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from small_runs import SMALL, composed

from odise_pl.errors import SettingError
from odise_pl.runs.checks import check_training
from odise_pl.runs.finished import read_objective, read_run
from odise_pl.training.run import train

FIT = ["data.limit_samples=2", "data.batch_size=1", "global_batch=1", "validate_every=100"]
FIT += [
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_train_steps=1",
    "callbacks.pictures.count=1",
]


def options(shards: Path, *more: str) -> list[str]:
    return [*SMALL, *FIT, f"data.train={shards}", f"data.val={shards}", *more]


@pytest.mark.parametrize("name", ["csv", "wandb", "mlflow"])
def test_run_resumes(name: str, scene_shards: Path, tmp_path: Path) -> None:
    if name != "csv":
        pytest.importorskip(name)
    for steps in (1, 2):
        more = [f"logger={name}", f"trainer.max_steps={steps}", *(["ckpt=last"] if steps == 2 else [])]
        train(composed("train", tmp_path, options(scene_shards, *more)))
    assert read_objective(tmp_path) == pytest.approx(100 * read_run(tmp_path).scores["val"]["pq"])
    if name == "csv":
        tables = [tmp_path / "csv" / f"version_{i}" / "metrics.csv" for i in range(2)]
        rows = [list(csv.DictReader(table.read_text().splitlines())) for table in tables]
        steps_logged = [{row["step"] for row in table if row["train/loss"]} for table in rows]
        assert steps_logged == [{"0"}, {"1"}]
        assert all(any(row["val/pq"] for row in table) for table in rows)
        assert all(any(row["lr-AdamW/pg1"] for row in table) for table in rows)


def test_run_without_logger(scene_shards: Path, tmp_path: Path) -> None:
    train(composed("train", tmp_path, options(scene_shards, "~logger", "trainer.max_steps=1")))
    assert read_objective(tmp_path) is not None
    assert not list(tmp_path.rglob("*tfevents*"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_named(
    name: str, scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("train", tmp_path, options(scene_shards, f"logger={name}"))
    monkeypatch.setattr("odise_pl.runs.checks.find_spec", {name: None}.get)
    with pytest.raises(SettingError, match=f"pip install {name}"):
        check_training(config)


def test_objective_of_unfinished_run(tmp_path: Path) -> None:
    assert read_objective(tmp_path) is None
