from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_pl.runs.command import report
from odise_pl.runs.record import AblationSettings, mark_finished

STEPS = ("0", "100", "200", "500", "0+100+200", "learnable")
CAPTIONERS = ("empty", "heuristic", "blip", "implicit")


def settings(steps: str = "0", captioner: str = "implicit", classifier: str = "both") -> AblationSettings:
    return AblationSettings("caption", steps, steps == "learnable", captioner, classifier)


def finish(folder: Path, words: AblationSettings, scores: dict[str, dict[str, float]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mark_finished(folder, words, scores)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Six steps by four captioners with consecutive PQ, and a second seed of the first run."""
    for i, steps in enumerate(STEPS):
        for j, captioner in enumerate(CAPTIONERS):
            scores = {"coco": {"pq": (4 * i + j) / 100, "map": 0.5, "miou": 0.25}}
            finish(tmp_path / f"{steps}_{captioner}", settings(steps, captioner), scores)
    again = {"coco": {"pq": 0.1, "map": 0.5, "miou": 0.25}, "ade": {"pq": 0.2}}
    finish(tmp_path / "again", settings("0", "empty"), again)
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_averages_runs_of_equal_settings(runs: Path, tmp_path: Path) -> None:
    report(runs, tmp_path / "out")
    rows = table(tmp_path / "out" / "all_runs.csv")
    assert len(rows) == 24
    by = {(row["timesteps"], row["captioner"]): row for row in rows}
    assert by["learnable", "implicit"]["coco PQ"] == "23.0"
    mean = by["0", "empty"]  # of 0 and 10
    assert (mean["coco PQ"], mean["ade PQ"], mean["ade mAP"], mean["runs"]) == ("5.0", "20.0", "", "2")


def test_tables_show_published_numbers(runs: Path, tmp_path: Path) -> None:
    report(runs)
    rows = table(runs / "report" / "timestep.csv")
    assert [row["timestep"] for row in rows] == list(STEPS)
    assert [row["paper: COCO PQ"] for row in rows] == ["44.2", "43.2", "42.4", "38.2", "43.7", "44.0"]
    # the implicit captioner's runs only
    assert [row["coco PQ"] for row in rows] == ["3.0", "7.0", "11.0", "15.0", "19.0", "23.0"]
    captioners = table(runs / "report" / "captioner.csv")
    assert [row["captioner"] for row in captioners] == list(CAPTIONERS)
    assert [row["paper: ADE20K PQ"] for row in captioners] == ["21.8", "22.2", "22.3", "23.3"]
    assert [row["coco PQ"] for row in captioners] == ["5.0", "1.0", "2.0", "3.0"]
    classifiers = table(runs / "report" / "classifier.csv")
    assert [row["coco PQ"] for row in classifiers] == ["", "", "3.0"]
    text = (runs / "report" / "ablations.md").read_text(encoding="utf-8")
    assert "| 0+100+200 | caption | no | 23.1 | 43.7 | 19.0 | 50.0 | 25.0 | 1 |" in text
    assert "| learnable | caption | yes | 22.8 | 44.0 | 23.0 | 50.0 | 25.0 | 1 |" in text


def test_models_and_learned_time_have_separate_rows(tmp_path: Path) -> None:
    kinds = {("label", False): 0.1, ("caption", False): 0.2, ("caption", True): 0.3}
    for (model, learned), pq in kinds.items():
        of_this = AblationSettings(model, "0", learned, "implicit", "both")
        finish(tmp_path / f"{model}{learned}", of_this, {"coco": {"pq": pq}})
    report(tmp_path)
    rows = [row for row in table(tmp_path / "report" / "timestep.csv") if row["timestep"] == "0"]
    assert [(row["model"], row["time learned"], row["coco PQ"], row["runs"]) for row in rows] == [
        ("caption", "no", "20.0", "1"),
        ("caption", "yes", "30.0", "1"),
        ("label", "no", "10.0", "1"),
    ]
    assert {row["paper: COCO PQ"] for row in rows} == {"44.2"}


def test_unpublished_setting_gets_a_row(tmp_path: Path) -> None:
    finish(tmp_path / "run", settings("50"), {"coco": {"pq": 0.5}})
    report(tmp_path)
    row = table(tmp_path / "report" / "timestep.csv")[-1]
    assert (row["timestep"], row["paper: COCO PQ"], row["coco PQ"]) == ("50", "", "50.0")


def test_plot_shows_the_runs(runs: Path, tmp_path: Path) -> None:
    report(runs, tmp_path / "with")
    finish(tmp_path / "empty" / "run", settings("0", "blip", "diffusion"), {"coco": {"pq": 1.0}})
    report(tmp_path / "empty", tmp_path / "without")
    one, other = (
        np.asarray(Image.open(tmp_path / name / "ablations.png").convert("RGB"))
        for name in ("with", "without")
    )
    assert one.shape == other.shape
    assert (one != other).any()
