from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from panoptic_maps import perfect_instances, segmentation, semantic_map
from rich.console import Console

from odise_pl.metrics import report
from odise_pl.metrics.suite import SegmentationMetrics
from odise_pl.metrics.tables import COLUMNS, Table, result_table
from odise_pl.structures import PanopticSegmentation, Prediction, Segment, Truth

NAMES = ("cat", "grass", "a|b", "sky")
Summary = dict[str, Any]


def row(ids: Sequence[int], *segments: Segment) -> PanopticSegmentation:
    """A map of one row of pixels."""
    return segmentation(np.array([ids]), list(segments))


def summarise(
    name: str,
    found: PanopticSegmentation,
    truth: PanopticSegmentation,
    isthing: Sequence[bool],
    semantic: torch.Tensor | None = None,
    skipped: int = 0,
    **options: Any,
) -> Summary:
    """The summary of one image."""
    metrics = SegmentationMetrics(isthing, NAMES[: len(isthing)], **options)
    classes = semantic_map(found, fill=-1) if semantic is None else semantic
    metrics.update([Prediction(found, perfect_instances(found), classes)], [Truth(truth)], [1])
    metrics.skip(skipped)
    return report.as_dict(metrics.compute(), name)


@pytest.fixture(scope="module")
def summary() -> Summary:
    """The cat is found with an IoU of 3/4, the grass missed, the other classes are absent."""
    truth = row([7, 7, 7, 7, 9, 9], Segment(7, 0, True), Segment(9, 1, False))
    found = row([3, 3, 3, 0, 0, 0], Segment(3, 0, True))
    isthing = (True, False, True, False)
    return summarise("tiny|world", found, truth, isthing, semantic_map(found, fill=1), skipped=3)


ROW = ["37.50", "37.50", "50.00", "75.00", "0.00", "60.00", "100.00", "70.83"]


def shown(table: Table, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.terminal())
    return " ".join(console.export_text().split())


def test_table_in_markdown_and_terminal(summary: Summary) -> None:
    table = result_table([summary, summary | {"data": "again"}])
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


def test_notes_explain_miou_and_missing_measures_are_dashes_and_null() -> None:
    truth = row([7, 7, 9, 9], Segment(7, 0, False), Segment(9, 1, False))
    classes = torch.tensor([[0, 0, 2, 3]])
    result = summarise("[red]pc459", row([0] * 4), truth, (False,) * 4, classes, measures=("semantic",))
    assert (result["panoptic"], result["instances"]) == (None, None)
    assert [one["iou"] for one in result["per_class"]] == [1.0, 0.0, None, None]
    assert set(result["per_class"][0]) == {"class", "isthing", "iou"}
    assert (result["scores"], result["semantic"]["miou_published"]) == ({"miou": 0.5}, 0.25)
    table = result_table([result])
    assert table.rows == (("[red]pc459", *["-"] * 7, "50.00"),)
    assert table.csv() == ",".join(table.header) + "\n[red]pc459,,,,,,,,50.00\n"
    for text in (table.markdown(), shown(table, 160)):
        assert "mIoU is averaged over 2 of 4 classes" in text
        assert "mean over the classes in the truth" in text
        assert "absent from the truth (2)" in text
        assert "25.00" in text
        assert text.count("[red]pc459") == 3, "names are not markup"


def test_summary_has_fractions_and_null_for_absent_classes(summary: Summary, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for name in ("first", "second"):  # overwrites the first
        report.write_summary(summary | {"data": name}, folder, {"step": 3})
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]
    written = json.loads((folder / "results.json").read_text())
    assert (written["data"], written["about"]) == ("second", {"step": 3})
    assert list(written["scores"]) == list(COLUMNS.values())
    assert (written["images"], written["left_out"]) == (1, 3)
    assert written["panoptic"]["all"] == {"pq": 0.375, "sq": 0.375, "rq": 0.5, "classes": 2}
    assert written["panoptic"]["stuff"]["classes"] == 1
    instances = ["note", "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "classes"]
    assert list(written["instances"]) == instances
    assert list(written["semantic"]) == [
        *("miou", "miou_published", "frequency_weighted_iou", "pixel_accuracy", "classes", "only_predicted")
    ]
    cat, grass, other, _ = written["per_class"]
    assert cat == {
        "class": "cat", "isthing": True, "pq": 0.75, "sq": 0.75, "rq": 1.0, "tp": 1, "fp": 0, "fn": 0,
        "ap": pytest.approx(0.6), "iou": 0.75,
    }  # fmt: skip
    assert (grass["pq"], grass["fn"], grass["ap"]) == (0.0, 1, None)
    assert (other["class"], other["pq"], other["ap"], other["iou"]) == ("a|b", None, None, None)


def test_table_shows_published_numbers(summary: Summary, tmp_path: Path) -> None:
    published = {"ade150": {"pq": 22.6, "miou": 29.9}, "coco": {"pq": 55.4, "map": 46.0, "miou": 65.2}}
    summaries = [summary | {"data": name} for name in ("ade150", "mine")]
    table = result_table(summaries, published)
    assert [c for c in table.header if "paper" in c] == ["PQ paper", "mIoU paper"]
    first, second = (dict(zip(table.header, cells, strict=True)) for cells in table.rows)
    assert (first["PQ"], first["PQ paper"], first["mIoU paper"]) == ("37.50", "22.6", "29.9")
    assert (second["PQ"], second["PQ paper"]) == ("37.50", "-")
    headers = {width: [str(c.header) for c in table.terminal(width).columns] for width in (60, 120)}
    headline = ["data", "PQ", "PQ paper", "mAP", "mIoU", "mIoU paper"]
    assert headers == {60: headline, 120: list(table.header)}
    report.write_table(summaries, tmp_path, published, {"step": 3})
    assert {path.name for path in tmp_path.iterdir()} == {f"results.{s}" for s in ("json", "md", "csv")}
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["published_percent"] == {"ade150": published["ade150"]}
    assert written["scores"]["mine"]["pq"] == 0.375
    assert (tmp_path / "results.csv").read_text().splitlines()[0].startswith("data,PQ,PQ paper,SQ")


def test_base_and_novel_classes_have_rows() -> None:
    """Of two base classes one is found and one missed; a novel one is half found."""
    truth = row([1] * 4 + [2] * 4 + [3] * 4, *(Segment(i, i - 1, i == 3) for i in (1, 2, 3)))
    found = row([1] * 4 + [0] * 4 + [3, 3, 3, 0], *(Segment(i, i - 1, i == 3) for i in (1, 3)))
    isthing = (False, False, True)
    result = summarise("open", found, truth, isthing, seen=(True, True, False))
    assert result["groups"] == {
        "base": {"pq": 0.5, "miou": 0.5},
        "novel": {"pq": 0.75, "map": pytest.approx(0.6), "miou": 0.75},
        "harmonic": {"pq": pytest.approx(0.6), "miou": pytest.approx(0.6)},
    }
    assert result["scores"]["pq_novel"] == 0.75
    assert [one["seen"] for one in result["per_class"]] == [True, True, False]
    rows = [cells[:2] for cells in result_table([result]).rows]
    groups = {"base": "50.00", "novel": "75.00", "harmonic": "60.00"}
    assert rows == [("open", "58.33"), *((f"open, {group}", cell) for group, cell in groups.items())]
    assert summarise("open", found, truth, isthing, seen=(True,) * 3)["groups"] == {}
