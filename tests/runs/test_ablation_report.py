from __future__ import annotations

import csv
from pathlib import Path

import pytest

from odise_pl.runs.command import report
from odise_pl.runs.record import RunSettings, mark_finished

STEPS = ("0", "100", "200", "500", "0+100+200", "learnable")
CAPTIONERS = ("empty", "heuristic", "blip", "implicit")


def finish(folder: Path, scores: dict[str, dict[str, float]], *settings: str, model: str = "caption") -> None:
    """``settings``: timesteps, captioner and classifier; by default those of the paper's tables."""
    steps, captioner, classifier = (*settings, *("0", "implicit", "both")[len(settings) :])
    folder.mkdir(parents=True, exist_ok=True)
    mark_finished(folder, RunSettings(model, steps, steps == "learnable", captioner, classifier), scores)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Of six steps by four captioners with consecutive PQ, and of runs that differ in one thing."""
    for i, steps in enumerate(STEPS):
        for j, captioner in enumerate(CAPTIONERS):
            scores = {"coco": {"pq": (4 * i + j) / 100, "map": 0.5, "miou": 0.25}}
            finish(tmp_path / f"{steps}_{captioner}", scores, steps, captioner)
    again = {"coco": {"pq": 0.1, "map": 0.5, "miou": 0.25}, "ade": {"pq": 0.2}}
    finish(tmp_path / "again", again, "0", "empty")
    finish(tmp_path / "label", {"coco": {"pq": 0.5}}, model="label")
    finish(tmp_path / "unpublished", {"coco": {"pq": 0.6}}, "50")
    report(tmp_path, tmp_path / "out")
    return tmp_path / "out"


def test_runs_of_equal_settings_are_averaged(tables: Path) -> None:
    rows = table(tables / "all_runs.csv")
    assert len(rows) == 26
    by = {(row["model"], row["timesteps"], row["captioner"]): row for row in rows}
    assert by["caption", "learnable", "implicit"]["coco PQ"] == "23.0"
    mean = by["caption", "0", "empty"]  # of 0 and 10
    assert (mean["coco PQ"], mean["ade PQ"], mean["ade mAP"], mean["runs"]) == ("5.0", "20.0", "", "2")


def test_tables_show_published_numbers(tables: Path) -> None:
    rows = table(tables / "timestep.csv")
    shown = [(row["timestep"], row["model"], row["paper: COCO PQ"], row["coco PQ"]) for row in rows]
    assert shown == [  # the implicit captioner's runs only
        ("0", "caption", "44.2", "3.0"),
        ("0", "label", "44.2", "50.0"),
        ("100", "caption", "43.2", "7.0"),
        ("200", "caption", "42.4", "11.0"),
        ("500", "caption", "38.2", "15.0"),
        ("0+100+200", "caption", "43.7", "19.0"),
        ("learnable", "caption", "44.0", "23.0"),
        ("50", "caption", "", "60.0"),
    ]
    assert [row["time learned"] for row in rows[-2:]] == ["yes", "no"]
    captioners = [row for row in table(tables / "captioner.csv") if row["model"] == "caption"]
    assert [row["captioner"] for row in captioners] == list(CAPTIONERS)
    assert [row["paper: ADE20K PQ"] for row in captioners] == ["21.8", "22.2", "22.3", "23.3"]
    assert [row["coco PQ"] for row in captioners] == ["5.0", "1.0", "2.0", "3.0"]
    assert [row["coco PQ"] for row in table(tables / "classifier.csv")] == ["", "", "3.0", "50.0"]
    text = (tables / "ablations.md").read_text(encoding="utf-8")
    assert "| 0+100+200 | caption | no | 23.1 | 43.7 | 19.0 | 50.0 | 25.0 | 1 |" in text
