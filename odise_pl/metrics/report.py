"""Results as a terminal table, Markdown and JSON."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from odise_pl.metrics.panoptic_quality import Quality
from odise_pl.metrics.suite import EvaluationResult

# Column of the table -> name among EvaluationResult.scalars().
COLUMNS = {
    "PQ": "pq",
    "SQ": "sq",
    "RQ": "rq",
    "PQ_th": "pq_things",
    "PQ_st": "pq_stuff",
    "mAP": "map",
    "AP50": "ap50",
    "mIoU": "miou",
}
AP_NOTE = "mAP and AP50 are of masks, against the thing segments of the panoptic truth, which do not overlap."


def terminal_table(results: Mapping[str, EvaluationResult]) -> Table:
    """One row a data set, in percent, for ``rich`` to print."""
    table = Table(title="Evaluation (%)", caption="\n".join(_notes(results)), caption_justify="left")
    table.add_column("data")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, result in results.items():
        table.add_row(name, *_percentages(result))
    return table


def markdown(results: Mapping[str, EvaluationResult]) -> str:
    """The same table in Markdown, with a line that says on how many images and classes it rests."""
    lines = [_markdown_row(["data", *COLUMNS]), "|---|" + "---:|" * len(COLUMNS)]
    lines += [_markdown_row([name, *_percentages(result)]) for name, result in results.items()]
    return "\n".join([*lines, "", "In percent.", *_notes(results)]) + "\n"


def _notes(results: Mapping[str, EvaluationResult]) -> list[str]:
    """On how many images and classes the numbers rest, and what AP is measured against."""
    notes = [
        f"{name}: {result.panoptic.num_images} images, {result.left_out} left out (damaged or without labels)"
        f"; PQ is averaged over {result.panoptic.all.num_classes} of {len(result.names)} classes."
        for name, result in results.items()
    ]
    return [*notes, AP_NOTE]


def as_dict(result: EvaluationResult, name: str) -> dict[str, Any]:
    """Everything measured as values that JSON knows: fractions, null for classes that do not occur."""
    panoptic, instances, semantic = result.panoptic, result.instances, result.semantic
    return {
        "data": name,
        "images": panoptic.num_images,
        "left_out": result.left_out,
        "panoptic": {part: _quality(getattr(panoptic, part)) for part in ("all", "things", "stuff")},
        "instances": {
            "note": AP_NOTE,
            "ap": instances.ap,
            "ap50": instances.ap50,
            "ap75": instances.ap75,
            "ap_small": instances.ap_small,
            "ap_medium": instances.ap_medium,
            "ap_large": instances.ap_large,
            "classes": instances.num_classes,
        },
        "semantic": {
            "miou": semantic.miou,
            "frequency_weighted_iou": semantic.frequency_weighted_iou,
            "pixel_accuracy": semantic.pixel_accuracy,
            "classes": semantic.num_classes,
        },
        "per_class": _per_class(result),
    }


def write_report(
    result: EvaluationResult, folder: Path | str, name: str, about: Mapping[str, Any] | None = None
) -> None:
    """Write ``results.json`` and ``results.md`` into ``folder``, each whole or not at all.

    Args:
        result: what was measured.
        folder: made when missing; files of an earlier report are replaced.
        name: name of the data set in the report.
        about: what was evaluated and how, kept in the JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_atomically(
        folder / "results.json",
        json.dumps({"about": dict(about or {}), **as_dict(result, name)}, indent=2, allow_nan=False) + "\n",
    )
    _write_atomically(folder / "results.md", markdown({name: result}))


def _percentages(result: EvaluationResult) -> list[str]:
    scalars = result.scalars()
    return [f"{100 * scalars[key]:.2f}" for key in COLUMNS.values()]


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _quality(quality: Quality) -> dict[str, float]:
    return {"pq": quality.pq, "sq": quality.sq, "rq": quality.rq, "classes": quality.num_classes}


def _per_class(result: EvaluationResult) -> list[dict[str, Any]]:
    columns = {
        "class": list(result.names),
        "isthing": list(result.isthing),
        "pq": _numbers(result.panoptic.pq),
        "sq": _numbers(result.panoptic.sq),
        "rq": _numbers(result.panoptic.rq),
        "tp": result.panoptic.stats.tp.tolist(),
        "fp": result.panoptic.stats.fp.tolist(),
        "fn": result.panoptic.stats.fn.tolist(),
        "ap": _numbers(result.instances.per_class),
        "iou": _numbers(result.semantic.per_class),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _numbers(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _write_atomically(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
