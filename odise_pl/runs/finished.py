"""Finished runs: their scores, and the settings that the scores depend on. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from odise_pl.checkpoints.description import PARTS
from odise_pl.runs.record import (
    EVALUATIONS,
    FINISHED,
    AblationSettings,
    RunError,
    backbone_name,
    read_settings,
    relevant_settings,
)

# Settings that differ between the runs of a row, have a column, or repeat another section.
_NO_CONDITIONS = re.compile(r"((data\.)?seed|validate_every)$|data\.(val(\.|$)|eval_batch_size)|fusion\.")
_MEASURING = ("eval_short_side", "eval_long_side", "limit_samples")  # of data
_ALL_BATCHES = 1.0  # Lightning's default


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: of the run.
        settings: of the run.
        scores: fractions by evaluation set and metric (``pq``, ``map``, ``miou``).
        seed: of the training; None if it is not recorded.
        conditions: all other settings that the scores depend on, by key.
        sources: the data of each evaluation set, by its name.
    """

    folder: Path
    settings: AblationSettings
    scores: Mapping[str, Mapping[str, float]]
    seed: int | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


def read_run(folder: Path) -> FinishedRun:
    """Read ``finished.json`` and the settings beside it.

    Raises:
        RunError: ``finished.json`` is missing, or one of the two is damaged.
    """
    path, own = folder / FINISHED, read_settings(folder) or {}
    training = (read_settings(_training_folder(folder)) or {}) if _is_evaluation(folder) else own
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        scores = {
            name: {k: float(v) for k, v in by.items() if isfinite(v)}
            for name, by in content["scores"].items()
        }
        training = content.get("training", training)
        backbone = own.get("network", training).get("backbone")
        known = {} if backbone is None else {"backbone": backbone_name(backbone)}
        known |= {"method": content["settings"].get("method") or f"odise_{content['settings']['model']}"}
        settings = AblationSettings(**content["settings"] | known)
        seed, conditions = training.get("seed"), _conditions(own, training)
        seed = None if seed is None else int(seed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it, and run the command again") from error
    flat = relevant_settings(own)
    sources = {name: str(flat.get(f"data.val.{name}", flat.get("data.val"))) for name in scores}
    return FinishedRun(folder, settings, scores, seed, conditions, sources)


def _conditions(own: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a training, and those of an evaluation on top."""
    flat = {"trainer.limit_val_batches": _ALL_BATCHES} | relevant_settings(training)
    if "network" in own:
        network, values = own["network"], {**own["data"], **own}
        evaluated = {
            **{part: network[part] for part in PARTS if part in network},
            "model": {key: value for key, value in network.items() if key not in PARTS},
            "data": {key: values[key] for key in _MEASURING if key in values},
            "vocabulary": {"eval": (own.get("vocabulary") or {}).get("eval")},
            "trainer": {
                "precision": own.get("precision"),
                "limit_val_batches": own.get("limit_val_batches", _ALL_BATCHES),
            },
            "paths": own.get("paths"),
        }
        flat |= relevant_settings(evaluated)
        if own.get("step") not in (None, flat.get("trainer.max_steps")):
            flat["step"] = own["step"]  # of a checkpoint that is not the last
    known = {key: str(value) for key, value in flat.items() if not _NO_CONDITIONS.match(key)}
    start = flat.get("init_from")
    # seeds of a second stage have first stages of their own
    if start is not None and (first := read_settings(Path(start))) is not None:
        del known["init_from"]
        known |= {
            f"init_from.{key}": value
            for key, value in _conditions(first, first).items()
            if known.get(key) != value
        }
    return known


def read_objective(folder: Path) -> float | None:
    """The score of a run in percent: PQ of its first evaluation set, or mAP or mIoU where PQ is not measured.

    None if it has none, or is not finished.
    """
    if not (folder / FINISHED).exists():
        return None
    first: Mapping[str, float] = next(iter(read_run(folder).scores.values()), {})
    return next((100 * first[name] for name in ("pq", "map", "miou") if name in first), None)


def find_runs(*folders: Path) -> list[FinishedRun]:
    """All finished runs in folders at any depth, sorted by path, each with the newest scores of every set.

    A training and its evaluations count as one run, except evaluations with other settings. Evaluation sets
    of the same name but other data are named with their data.

    Raises:
        RunError: a folder has none, or a file of a run is damaged.
    """
    paths = set()
    for folder in folders:
        found = set(folder.rglob(FINISHED))
        if not found:
            raise RunError(
                f"{folder} contains no finished run ({FINISHED} at any depth): choose another folder"
            )
        paths |= found
    merged: dict[Any, FinishedRun] = {}
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        run = read_run(path.parent)
        place = _training_folder(path.parent)
        key = place, run.settings, frozenset(run.conditions.items())
        old = merged.get(key, run)
        scores, sources = {**old.scores, **run.scores}, {**old.sources, **run.sources}
        merged[key] = replace(run, folder=place, scores=scores, sources=sources)
    return sorted(_name_sets(list(merged.values())), key=lambda run: run.folder)


def _name_sets(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs; sets of the same name but other data are renamed, such as ``val (data/shards/my_val)``."""
    data: dict[str, set[str]] = {}
    for run in runs:
        for name, source in run.sources.items():
            data.setdefault(name, set()).add(source)
    return [
        replace(
            run,
            scores={
                name if len(data[name]) == 1 else f"{name} ({run.sources[name]})": by
                for name, by in run.scores.items()
            },
        )
        for run in runs
    ]


def _is_evaluation(folder: Path) -> bool:
    return folder.parent.name == EVALUATIONS


def _training_folder(folder: Path) -> Path:
    """The folder of a training, or of the training that an evaluation belongs to."""
    return folder.parent.parent if _is_evaluation(folder) else folder
