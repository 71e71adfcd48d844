"""Finished runs of given settings and scores, and the tables that report them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from odise_pl.runs.finished import find_runs
from odise_pl.runs.record import AblationSettings, mark_finished, write_settings
from odise_pl.runs.report import all_runs_tables


def settings(
    steps: str = "0", captioner: str = "implicit", classifier: str = "both", model: str = "caption"
) -> AblationSettings:
    return AblationSettings(model, steps, steps == "learnable", captioner, classifier)


def finish(folder: Path, words: AblationSettings, scores: dict[str, dict[str, float]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mark_finished(folder, words, scores)


def train(folder: Path, seed: int, pq: float, words: AblationSettings | None = None, **changed: Any) -> None:
    """A finished training of the given seed, PQ in percent and settings."""
    base = {"seed": seed, "trainer": {"max_steps": 10}, "data": {"train": "t", "val": "v", "seed": seed}}
    write_settings(folder / f"seed_{seed}", base | changed)
    mark_finished(folder / f"seed_{seed}", words or settings(), {"val": {"pq": pq / 100}})


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def all_runs(*folders: Path) -> list[dict[str, str]]:
    _, (scores, _) = all_runs_tables(find_runs(*folders))
    return read(scores.csv())
