"""The record of a run or an evaluation: its settings in ``config.yaml``, its scores in ``finished.json``.

A run is identified by its resolved settings, which are written when it starts. Starting a run in the same
folder compares them: equal settings resume or skip it, others are refused. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from odise_pl.checkpoints.description import current_names, frozen_sections
from odise_pl.errors import UserError
from odise_pl.files import write_text

SETTINGS = "config.yaml"
FINISHED = "finished.json"
EVALUATIONS = "evaluation"  # folder of a run's evaluations
_COMMAND = "# odise "
_LONGEST = 80  # characters of each word in a folder name
# Settings that do not change what a run computes, in whole sections and within others; only records of
# earlier versions have "progress" and "save_every".
_IGNORED = ("run", "run_dir", "ckpt", "callbacks", "logger", "hydra", "progress", "paths", "save_every")
_IGNORED_IN = {
    "trainer": (
        *("accelerator", "devices", "num_nodes", "strategy"),
        *("log_every_n_steps", "enable_progress_bar"),
    ),
    "data": ("num_workers", "timeout"),
}
# flattened keys: repetitions of other sections, and what changes neither results nor what is loaded
_IGNORED_KEYS = re.compile(
    r"model\.(backbone|clip|captioner|classifier)\.|(.+\.)?(source|backbone\.window_batch)$"
)


class RunError(UserError, ValueError):
    """The record of a run is missing or damaged."""


@dataclass(frozen=True)
class AblationSettings:
    """The settings that the paper's ablations vary.

    Attributes:
        model: ``label`` or ``caption``.
        timesteps: such as ``0``, ``0+100+200`` or ``learnable``; ``none`` without a diffusion model.
        learnable_time: whether the time embedding is learned.
        captioner: ``implicit``, ``empty``, ``heuristic``, ``blip`` (precomputed for whole images, as
            published), ``blip_on_the_fly`` (for windows), ``none``, or the name of another function.
        classifier: ``both``, ``diffusion`` or ``discriminative``.
    """

    model: str
    timesteps: str
    learnable_time: bool
    captioner: str
    classifier: str


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: of the run.
        settings: of the run.
        scores: fractions by evaluation set and metric (``pq``, ``map``, ``miou``).
    """

    folder: Path
    settings: AblationSettings
    scores: Mapping[str, Mapping[str, float]]


def extract_ablation_settings(model: Mapping[str, Any]) -> AblationSettings:
    """The ablation settings of a network, from the arguments that build it."""
    steps, captioner = "none", model["captioner"]
    for _, section in frozen_sections(model):
        steps = section.get("timesteps", steps)  # of the diffusion model, if there is one
    words = steps if isinstance(steps, str) else "+".join(map(str, steps))
    kind = captioner["_target_"].rpartition(".")[2].removesuffix("_captioner")
    kind += "_on_the_fly" if captioner.get("on_the_fly") else ""
    learned = words == "learnable" or bool(captioner.get("learnable_time"))
    return AblationSettings(model["supervision"], words, learned, kind, model["classifier"]["mode"])


def in_sweep() -> bool:
    """Whether this run is part of a Hydra sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what a run computes."""
    return {
        name: {k: v for k, v in value.items() if k not in _IGNORED_IN.get(name, ())}
        if isinstance(value, Mapping)
        else value
        for name, value in settings.items()
        if name not in _IGNORED
    }


def resolve_settings(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {name: value for name, value in plain.items() if name != "hydra"}


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write ``config.yaml``, below the command as a comment if there was one."""
    folder.mkdir(parents=True, exist_ok=True)
    comment = ""
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        comment = f"{_COMMAND}{shlex.join([str(hydra.job.config_name), *hydra.overrides.task])}\n"
    write_text(folder / SETTINGS, comment + OmegaConf.to_yaml(OmegaConf.create(dict(settings))))


def read_command(folder: Path) -> str | None:
    """The command that started or last resumed the run in a folder; None if it is not recorded."""
    try:
        first = (folder / SETTINGS).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None
    return first.removeprefix("# ") if first.startswith(_COMMAND) else None


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder; None if there are none.

    Raises:
        RunError: the file is damaged.
    """
    # earlier versions numbered the configurations and did not resolve them
    number = lambda path: int(path.stem.partition("_")[2] or 0)  # noqa: E731
    paths = sorted(folder.glob("config*.yaml"), key=number)
    if not paths:
        return None
    try:
        kept = OmegaConf.create(current_names(OmegaConf.to_container(OmegaConf.load(paths[-1]))))
        assert isinstance(kept, DictConfig)
        relevant = OmegaConf.masked_copy(kept, list(({*map(str, kept)} - {*_IGNORED}) | {"paths"}))
        plain: Any = OmegaConf.to_container(relevant, resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, AttributeError) as error:
        raise RunError(f"{paths[-1]} is damaged ({error}); delete it, or choose another run") from error
    return plain


def list_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changed settings that affect the results, as ``KEY OLD -> NEW``; folders of ``paths`` may move."""
    old, new = dict(_flatten(_relevant(before))), dict(_flatten(_relevant(now)))
    keys = [key for key in sorted({*old, *new}) if not _IGNORED_KEYS.match(key)]
    pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in keys}
    return [
        f"{key} {was} -> {is_now}"
        for key, (was, is_now) in pairs.items()
        if _relative(was, before) != _relative(is_now, now)
    ]


def _relative(value: Any, settings: Mapping[str, Any]) -> Any:
    """A path below a folder of ``paths``, by the folder's name; other values as they are."""
    for name, folder in (settings.get("paths") or {}).items():
        if isinstance(value, str) and value.startswith(f"{folder}/"):
            return f"${{paths.{name}}}{value.removeprefix(str(folder))}"
    return value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def mark_finished(
    folder: Path, settings: AblationSettings, scores: Mapping[str, Mapping[str, float]]
) -> None:
    """Write ``finished.json``, as the last step of a run; arguments as in :class:`FinishedRun`."""
    known = {name: {k: v for k, v in by.items() if math.isfinite(v)} for name, by in scores.items()}
    write_text(folder / FINISHED, json.dumps({"settings": vars(settings), "scores": known}, indent=1) + "\n")


def is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder contains a finished run with these settings."""
    if not (folder / FINISHED).exists():
        return False
    kept = read_settings(folder)
    return kept is not None and not list_changes(kept, settings)


def read_run(folder: Path) -> FinishedRun:
    """Read ``finished.json``.

    Raises:
        RunError: it is missing or damaged.
    """
    path = folder / FINISHED
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        scores = {name: {k: float(v) for k, v in by.items()} for name, by in content["scores"].items()}
        return FinishedRun(folder, AblationSettings(**content["settings"]), scores)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it, and run the command again") from error


def read_objective(folder: Path) -> float | None:
    """The score of a run in percent: PQ of its first evaluation set, or mAP or mIoU where PQ is not measured.

    None if it has none, or is not finished.
    """
    if not (folder / FINISHED).exists():
        return None
    first: Mapping[str, float] = next(iter(read_run(folder).scores.values()), {})
    return next((100 * first[name] for name in ("pq", "map", "miou") if name in first), None)


def find_runs(folder: Path) -> list[FinishedRun]:
    """All finished runs in a folder at any depth, sorted by path, each with the newest scores of every set.

    A training and its evaluations count as one run, except evaluations with another classifier.

    Raises:
        RunError: there is none, or a ``finished.json`` is damaged.
    """
    paths = sorted(folder.rglob(FINISHED), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise RunError(f"{folder} contains no finished run ({FINISHED} at any depth): choose another folder")
    merged: dict[tuple[Path, AblationSettings], FinishedRun] = {}
    for run in (read_run(path.parent) for path in paths):
        key = _training_folder(run), run.settings
        older = merged[key].scores if key in merged else {}
        merged[key] = replace(run, folder=key[0], scores={**older, **run.scores})
    return sorted(merged.values(), key=lambda run: run.folder)


def _training_folder(run: FinishedRun) -> Path:
    """The folder of a training, or of the training that an evaluation belongs to."""
    return run.folder.parent.parent if run.folder.parent.name == EVALUATIONS else run.folder


def evaluation_folder(run_dir: Path, words: Sequence[str], settings: Mapping[str, Any]) -> Path:
    """The folder of an evaluation; the same for the same settings.

    Args:
        run_dir: folder of the run.
        words: parts of the name: sets, classifier, step.
        settings: of the evaluation.

    Returns:
        ``evaluation/WORDS`` in the run's folder, with a number if another evaluation has that name.
    """
    name = "-".join(re.sub(r"[^\w.+-]+", "_", word)[:_LONGEST] for word in words)
    place, number = run_dir / EVALUATIONS / name, 2
    while _is_of_another(place, settings):
        place, number = place.with_name(f"{name}-{number}"), number + 1
    return place


def _is_of_another(folder: Path, settings: Mapping[str, Any]) -> bool:
    kept = read_settings(folder)
    return (folder / FINISHED).exists() if kept is None else bool(list_changes(kept, settings))
