"""Results as JSON, Markdown and CSV files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from odise_pl.files import write_text
from odise_pl.metrics.mask_ap import MaskAPResult
from odise_pl.metrics.mean_iou import MeanIoUResult
from odise_pl.metrics.suite import EvaluationResult
from odise_pl.metrics.tables import Published, Summary, result_table

AP_NOTE = "mAP and AP50 are of masks, against the thing segments of the panoptic truth, which do not overlap."
AP_NOTE_OBJECTS = "mAP and AP50 are of masks, against the annotated objects, which may overlap."


def as_dict(result: EvaluationResult, name: str) -> dict[str, Any]:
    """A result as JSON values: fractions, with null for absent classes and for what was not measured."""
    return {
        "data": name,
        "images": result.num_images,
        "left_out": result.skipped,
        "scores": result.scalars(),
        "groups": result.groups(),
        "panoptic": _panoptic(result),
        "instances": _instances(result),
        "semantic": None if result.semantic is None else _means(result.semantic),
        "per_class": _per_class(result),
    }


def write_summary(summary: Summary, folder: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write ``results.json`` and ``results.md`` of one data set.

    Args:
        summary: from :func:`as_dict`.
        folder: created if missing; existing results are overwritten.
        about: what was evaluated and how, for the JSON file.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.json", _json({"about": dict(about or {}), **summary}))
    write_text(folder / "results.md", result_table([summary]).markdown())


def write_table(
    results: Sequence[Summary],
    folder: Path,
    published: Published | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the table of all data sets: ``results.json``, ``results.md`` and ``results.csv``.

    Args:
        results: from :func:`as_dict`.
        folder, about: as for :func:`write_summary`.
        published: numbers to show beside the results, in percent.
    """
    table = result_table(results, published)
    folder.mkdir(parents=True, exist_ok=True)
    scores = {r["data"]: r["scores"] for r in results}
    published = {name: dict(of) for name, of in (published or {}).items() if name in scores}
    content = {"about": dict(about or {}), "scores": scores, "published_percent": published}
    write_text(folder / "results.json", _json(content))
    write_text(folder / "results.md", table.markdown())
    write_text(folder / "results.csv", table.csv())


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _panoptic(result: EvaluationResult) -> dict[str, Any] | None:
    if result.panoptic is None:
        return None
    return {part: asdict(getattr(result.panoptic, part)) for part in ("all", "things", "stuff")}


def _instances(result: EvaluationResult) -> dict[str, Any] | None:
    if result.instances is None:
        return None
    numbers = _means(result.instances)
    note = AP_NOTE_OBJECTS if numbers.pop("num_annotated") else AP_NOTE
    return {"note": note, **numbers}


def _means(result: MaskAPResult | MeanIoUResult) -> dict[str, Any]:
    return {name: value for name, value in vars(result).items() if name != "per_class"}


def _per_class(result: EvaluationResult) -> list[dict[str, Any]]:
    columns: dict[str, list[Any]] = {"class": list(result.names), "isthing": list(result.isthing)}
    if result.seen is not None:
        columns["seen"] = list(result.seen)
    if (panoptic := result.panoptic) is not None:
        columns |= {name: _numbers(getattr(panoptic, name)) for name in ("pq", "sq", "rq")}
        columns |= {name: getattr(panoptic, name).tolist() for name in ("tp", "fp", "fn")}
    if result.instances is not None:
        columns["ap"] = _numbers(result.instances.per_class)
    if result.semantic is not None:
        columns["iou"] = _numbers(result.semantic.per_class)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _numbers(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
