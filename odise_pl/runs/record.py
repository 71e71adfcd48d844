"""What a finished run leaves behind, so that a sweep skips it and a report finds it. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from odise_pl.errors import SettingError, UserError
from odise_pl.files import write_text

MARKER = "finished.json"
CLAIM = ".progress/digest"  # whose progress lies in the folder of an evaluation
_LONGEST = 80  # characters of a folder's name
EVALUATIONS = "evaluation"  # evaluations of a run lie side by side in this folder of it
# Where a run lies and how it was resumed change nothing of what it computes.
_ELSEWHERE = ("run", "run_dir", "ckpt", "callbacks", "logger", "hydra", "progress", "paths", "save_every")
# So do these within their sections: where and how fast it is computed.
_NO_MATTER = {
    "trainer": (
        "accelerator",
        "devices",
        "num_nodes",
        "strategy",
        "log_every_n_steps",
        "enable_progress_bar",
    ),
    "data": ("num_workers", "prefetch_factor", "pin_memory", "timeout"),
}


class RunError(UserError, ValueError):
    """A folder does not hold what a run leaves."""


@dataclass(frozen=True)
class RunSettings:
    """What the ablations of the paper vary, in words.

    Attributes:
        model: ``label`` or ``caption``.
        timesteps: ``0``, ``0+100+200``, ``learnable``.
        learnable_time: whether the time embedding is learned.
        captioner: ``implicit``, ``empty``, ``heuristic``, ``blip`` (of whole images, precomputed, as
            published), ``blip_on_the_fly`` (of windows), or the name of another function.
        classifier: ``both``, ``diffusion``, ``discriminative``.
    """

    model: str
    timesteps: str
    learnable_time: bool
    captioner: str
    classifier: str


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end.

    Attributes:
        folder: of the run.
        settings: what it was.
        scores: of each evaluation set by metric (``pq``, ``map``, ``miou``), as fractions.
        digest: of the whole configuration.
    """

    folder: Path
    settings: RunSettings
    scores: Mapping[str, Mapping[str, float]]
    digest: str


def settings_of(config: DictConfig) -> RunSettings:
    """The settings that a configuration names."""
    steps = config.backbone.timesteps
    words = steps if isinstance(steps, str) else "+".join(str(step) for step in steps)
    captioner = config.captioner["_target_"].rpartition(".")[2].removesuffix("_captioner")
    captioner += "_on_the_fly" if config.captioner.get("on_the_fly", False) else ""
    learned = words == "learnable" or bool(config.captioner.get("learnable_time", False))
    return RunSettings(config.model.supervision, words, learned, captioner, config.classifier.mode)


def computed(config: DictConfig) -> dict[Any, Any]:
    """The settings that change what a run computes, resolved."""
    plain: dict[Any, Any] = {
        name: OmegaConf.to_container(config[name], resolve=True)
        for name in config
        if name not in _ELSEWHERE and OmegaConf.is_config(config[name])
    }
    plain |= {name: config[name] for name in config if name not in {*_ELSEWHERE, *plain}}
    for section, names in _NO_MATTER.items():
        plain[section] = {k: v for k, v in plain.get(section, {}).items() if k not in names}
    return plain


def digest_of(config: DictConfig, *inputs: str) -> str:
    """Changes with every setting, and every one of ``inputs``, that changes what a run computes."""
    text = json.dumps([computed(config), inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_facts(path: Path) -> tuple[str, str]:
    """What tells a file from another, or a later one of the same name, for :func:`digest_of`."""
    return str(path.resolve()), str(path.stat().st_mtime_ns)


def in_sweep() -> bool:
    """Whether Hydra runs this program for one of several settings."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def mark_finished(
    folder: Path, settings: RunSettings, scores: Mapping[str, Mapping[str, float]], digest: str
) -> None:
    """Write ``finished.json``: the last thing that a run does, whole or not at all.

    Args:
        folder: of the run.
        settings: what it was.
        scores: of each evaluation set by metric, as fractions.
        digest: from :func:`digest_of`.
    """
    known = {name: {k: v for k, v in by.items() if math.isfinite(v)} for name, by in scores.items()}
    content = {"settings": asdict(settings), "digest": digest, "scores": known}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARKER, json.dumps(content, indent=1) + "\n")


def is_finished(folder: Path, digest: str) -> bool:
    """Whether this very run, with the same settings, came to its end in its folder.

    Raises:
        SettingError: a run with other settings came to its end there.
        RunError: the folder's marker is damaged.
    """
    if not (folder / MARKER).exists():
        return False
    if read_run(folder).digest != digest:
        raise SettingError(
            f"{folder} holds a finished run with other settings; name another with run=NAME, or delete it"
        )
    return True


def find_evaluation(config: DictConfig, digest: str) -> Path | None:
    """The folder of this very evaluation, if it came to its end.

    Raises:
        RunError: the marker of an evaluation is damaged.
    """
    markers = sorted(Path(config.run_dir, EVALUATIONS).glob(f"*/{MARKER}"))
    return next((m.parent for m in markers if read_run(m.parent).digest == digest), None)


def evaluation_folder(config: DictConfig, step: int | None, digest: str) -> Path:
    """Where an evaluation goes: in the place of the same one, never in that of another.

    Args:
        config: of the evaluation.
        step: of the checkpoint, if it says so.
        digest: of the evaluation, from :func:`digest_of`.

    Returns:
        ``evaluation/SET-CLASSIFIER-step_STEP`` in the run's folder, with a number after it where another
        evaluation has that name, be it finished or interrupted.
    """
    own = find_evaluation(config, digest) or _interrupted(config, digest)
    if own is not None:
        return own
    name = "-".join(
        [*_set_name(config.data.val), config.classifier.mode, *([] if step is None else [f"step_{step}"])]
    )
    folder, number = Path(config.run_dir, EVALUATIONS, name), 2
    while (folder / MARKER).exists() or (folder / CLAIM).exists():
        folder, number = folder.with_name(f"{name}-{number}"), number + 1
    return folder


def _interrupted(config: DictConfig, digest: str) -> Path | None:
    """The folder of this very evaluation, if it was interrupted."""
    claims = sorted(Path(config.run_dir, EVALUATIONS).glob(f"*/{CLAIM}"))
    return next(
        (c.parent.parent for c in claims if c.read_text(encoding="utf-8", errors="replace") == digest), None
    )


def _set_name(val: Any) -> list[str]:
    """The names of evaluation sets, or the last part of the path or URL of the only one without a name."""
    if not isinstance(val, str):
        return ["+".join(unquote(str(name)) for name in val)[:_LONGEST]] if val else []
    words = re.findall(r"[\w.-]+", val.replace("/dataset.json", "").rstrip("/ -").rpartition("/")[2])
    return words[-1:]


def read_run(folder: Path) -> FinishedRun:
    """What a finished run says of itself.

    Raises:
        RunError: there is no marker, or it is damaged.
    """
    path = folder / MARKER
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings = RunSettings(**content["settings"])
        scores = {name: {k: float(v) for k, v in by.items()} for name, by in content["scores"].items()}
        return FinishedRun(folder, settings, scores, str(content["digest"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); delete it, and the same command makes it anew"
        ) from error


def find_runs(folder: Path) -> list[FinishedRun]:
    """All finished runs at or below a folder, by path, each with the newest scores of every set.

    A network is measured by training and by any number of evaluations beside it, and is one run all the same.
    An evaluation with another classifier is a run of its own.

    Raises:
        RunError: there is none, or a marker is damaged.
    """
    paths = sorted(folder.rglob(MARKER), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise RunError(
            f"{folder} holds no finished run (no {MARKER} at any depth); a run writes it at its end"
        )
    merged: dict[tuple[Path, RunSettings], FinishedRun] = {}
    for run in (read_run(path.parent) for path in paths):
        key = _home(run), run.settings
        older = merged[key].scores if key in merged else {}
        merged[key] = replace(run, folder=key[0], scores={**older, **run.scores})
    return sorted(merged.values(), key=lambda run: run.folder)


def _home(run: FinishedRun) -> Path:
    """The folder of the network: that of its training, which evaluations lie in."""
    return run.folder.parent.parent if run.folder.parent.name == EVALUATIONS else run.folder
