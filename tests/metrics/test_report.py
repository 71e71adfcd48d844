from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from panoptic_maps import perfect_instances, segmentation, semantic_map
from rich.console import Console

from odise_pl.metrics import report
from odise_pl.metrics.report import as_dict
from odise_pl.metrics.suite import EvaluationResult, SegmentationMetrics
from odise_pl.metrics.tables import COLUMNS, Table, result_table
from odise_pl.structures import Prediction, Segment, Truth

NAMES = ("cat", "grass", "a|b", "sky")


@pytest.fixture
def result() -> EvaluationResult:
    """The cat is found with an IoU of 3/4, the grass missed, the other classes are absent."""
    truth = segmentation(np.array([[7, 7, 7, 7, 9, 9]]), [Segment(7, 0, True), Segment(9, 1, False)])
    panoptic = segmentation(np.array([[3, 3, 3, 0, 0, 0]]), [Segment(3, 0, True)])
    metrics = SegmentationMetrics((True, False, True, False), NAMES)
    prediction = Prediction(panoptic, perfect_instances(panoptic), semantic_map(panoptic, fill=1))
    metrics.update([prediction], [Truth(truth)], [1])
    metrics.skip(1)
    metrics.skip(2)
    return metrics.compute()


ROW = ["37.50", "37.50", "50.00", "75.00", "0.00", "60.00", "100.00", "70.83"]


def shown(table: Table, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.terminal())
    return " ".join(console.export_text().split())


def test_table_in_markdown_and_terminal(result: EvaluationResult) -> None:
    table = result_table([as_dict(result, "tiny|world"), as_dict(result, "again")])
    lines = table.markdown().splitlines()
    assert lines[0] == "| data | PQ | SQ | RQ | PQ_th | PQ_st | mAP | AP50 | mIoU |"
    assert lines[2] == "| tiny\\|world | " + " | ".join(ROW) + " |"
    assert lines[3] == "| again | " + " | ".join(ROW) + " |"
    text = shown(table)
    assert all(cell in text for cell in ["tiny|world", *ROW, *COLUMNS])
    for note in (
        "again: 1 images, 3 skipped",
        "PQ is averaged over 2 of 4 classes",
        "mAP is averaged over 1 of 4 classes",
        "mIoU is averaged over 2 of 4 classes",
        report.AP_NOTE,
    ):
        assert note in text
        assert note in table.markdown()


def test_notes_explain_miou() -> None:
    metrics = SegmentationMetrics((False,) * 4, NAMES, measures=("semantic",))
    truth = segmentation(np.array([[7, 7, 9, 9]]), [Segment(7, 0, False), Segment(9, 1, False)])
    nothing = segmentation(np.zeros((1, 4), dtype=np.int64), [])
    prediction = Prediction(nothing, perfect_instances(nothing), torch.tensor([[0, 0, 2, 3]]))
    metrics.update([prediction], [Truth(truth)], [1])
    summary = as_dict(metrics.compute(), "[red]pc459")
    assert [row["iou"] for row in summary["per_class"]] == [1.0, 0.0, None, None]
    assert (summary["scores"]["miou"], summary["semantic"]["miou_published"]) == (0.5, 0.25)
    table = result_table([summary])
    for text in (table.markdown(), shown(table, 160)):
        assert "mIoU is averaged over 2 of 4 classes" in text
        assert "mean over the classes in the truth" in text
        assert "absent from the truth (2)" in text
        assert "25.00" in text
        assert text.count("[red]pc459") == 3, "names are not markup"


def test_dict_has_null_for_absent_classes(result: EvaluationResult) -> None:
    content = json.loads(json.dumps(as_dict(result, "tiny"), allow_nan=False))
    assert content["data"] == "tiny"
    assert (content["images"], content["left_out"]) == (1, 3)
    assert content["panoptic"]["all"] == {"pq": 0.375, "sq": 0.375, "rq": 0.5, "classes": 2}
    assert content["panoptic"]["stuff"]["classes"] == 1
    assert content["instances"]["ap50"] == 1.0
    cat, grass, other, _ = content["per_class"]
    assert cat == {
        "class": "cat", "isthing": True, "pq": 0.75, "sq": 0.75, "rq": 1.0, "tp": 1, "fp": 0, "fn": 0,
        "ap": pytest.approx(0.6), "iou": 0.75,
    }  # fmt: skip
    assert (grass["pq"], grass["fn"], grass["ap"]) == (0.0, 1, None)
    assert (other["class"], other["pq"], other["ap"], other["iou"]) == ("a|b", None, None, None)


def test_summary_overwrites_earlier_one(result: EvaluationResult, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        report.write_summary(as_dict(result, name), folder, {"step": 3})
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]
    written = json.loads((folder / "results.json").read_text())
    assert written == {"about": {"step": 3}} | as_dict(result, "second")
    assert (folder / "results.md").read_text() == result_table([as_dict(result, "second")]).markdown()


def test_scalars_are_fractions(result: EvaluationResult) -> None:
    scalars = result.scalars()
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in scalars.values())
    assert list(scalars) == list(COLUMNS.values())


def test_missing_measures_are_dashes_and_null() -> None:
    truth = segmentation(np.array([[7, 7, 9, 9]]), [Segment(7, 0, False), Segment(9, 1, False)])
    metrics = SegmentationMetrics((False, False), ("sky", "sea"), measures=("semantic",))
    prediction = Prediction(truth, perfect_instances(truth), semantic_map(truth))
    metrics.update([prediction], [Truth(truth)], [1])
    summary = as_dict(metrics.compute(), "pc2")
    assert (summary["panoptic"], summary["instances"]) == (None, None)
    assert summary["scores"] == {"miou": 1.0}
    assert set(summary["per_class"][0]) == {"class", "isthing", "iou"}
    table = result_table([summary])
    assert table.rows == (("pc2", *["-"] * 7, "100.00"),)
    assert table.csv() == ",".join(table.header) + "\npc2,,,,,,,,100.00\n"


def test_table_shows_published_numbers(result: EvaluationResult, tmp_path: Path) -> None:
    published = {"ade150": {"pq": 22.6, "miou": 29.9}, "coco": {"pq": 55.4, "map": 46.0, "miou": 65.2}}
    summaries = [as_dict(result, "ade150"), as_dict(result, "mine")]
    table = result_table(summaries, published)
    assert [c for c in table.header if "paper" in c] == ["PQ paper", "mIoU paper"]
    first, second = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (first["PQ"], first["PQ paper"], first["mIoU paper"]) == ("37.50", "22.6", "29.9")
    assert (second["PQ"], second["PQ paper"]) == ("37.50", "-")
    report.write_table(summaries, tmp_path, published, {"step": 3})
    assert {path.name for path in tmp_path.iterdir()} == {f"results.{s}" for s in ("json", "md", "csv")}
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["published_percent"] == {"ade150": published["ade150"]}
    assert written["scores"]["mine"]["pq"] == 0.375
    assert (tmp_path / "results.csv").read_text().splitlines()[0].startswith("data,PQ,PQ paper,SQ")


def test_base_and_novel_classes_have_rows() -> None:
    """Of two base classes one is found and one missed; a novel one is half found."""
    ids = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]])
    found = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 3, 3, 3, 0]])
    truth = segmentation(ids, [Segment(i, i - 1, i == 3) for i in (1, 2, 3)])
    panoptic = segmentation(found, [Segment(i, i - 1, i == 3) for i in (1, 3)])
    metrics = SegmentationMetrics((False, False, True), ("a", "b", "c"), seen=(True, True, False))
    prediction = Prediction(panoptic, perfect_instances(panoptic), semantic_map(panoptic, fill=-1))
    metrics.update([prediction], [Truth(truth)], [1])
    summary = as_dict(metrics.compute(), "open")
    assert summary["groups"] == {
        "base": {"pq": 0.5, "miou": 0.5},
        "novel": {"pq": 0.75, "map": pytest.approx(0.6), "miou": 0.75},
    }
    assert summary["scores"]["pq_novel"] == 0.75
    assert [row["seen"] for row in summary["per_class"]] == [True, True, False]
    rows = [row[:2] for row in result_table([summary]).rows]
    assert rows == [("open", "58.33"), ("open, base", "50.00"), ("open, novel", "75.00")]
    assert SegmentationMetrics((True,), ("a",), seen=(True,)).compute().groups() == {}


def test_narrow_terminal_shows_headline_columns(result: EvaluationResult) -> None:
    table = result_table([as_dict(result, "ade150")], {"ade150": {"pq": 22.6}})
    headers = {width: [str(c.header) for c in table.terminal(width).columns] for width in (60, 120)}
    assert headers == {60: ["data", "PQ", "PQ paper", "mAP", "mIoU"], 120: list(table.header)}
