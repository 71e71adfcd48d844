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
from dataclasses import dataclass
from functools import cache
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
from odise_pl.runs.conf import CONF

SETTINGS = "config.yaml"
FINISHED = "finished.json"
EVALUATIONS = "evaluation"  # folder of a run's evaluations
_COMMAND = "# odise "
_UNKNOWN = "unknown"
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
        backbone: see :func:`backbone_name`; earlier versions did not write it.
        method: the preset, such as ``odise_label`` or ``fc_clip``; earlier versions did not write it.
    """

    model: str
    timesteps: str
    learnable_time: bool
    captioner: str
    classifier: str
    backbone: str = _UNKNOWN
    method: str = ""


def extract_ablation_settings(model: Mapping[str, Any]) -> AblationSettings:
    """The ablation settings of a network, from the arguments that build it."""
    steps, captioner = "none", model["captioner"]
    for _, section in frozen_sections(model):
        steps = section.get("timesteps", steps)  # of the diffusion model, if there is one
    words = steps if isinstance(steps, str) else "+".join(map(str, steps))
    kind = captioner["_target_"].rpartition(".")[2].removesuffix("_captioner")
    kind += "_on_the_fly" if captioner.get("on_the_fly") else ""
    learned = words == "learnable" or bool(captioner.get("learnable_time"))
    mode, backbone = model["classifier"]["mode"], backbone_name(model["backbone"])
    method = model.get("method") or f"odise_{model['supervision']}"
    return AblationSettings(model["supervision"], words, learned, kind, mode, backbone, method)


def backbone_name(settings: Mapping[str, Any] | None) -> str:
    """The name of a backbone: of the file in ``conf/backbone`` with its weights, or else of the weights.

    Networks of one architecture differ in their weights alone, and evaluations know a network only by its
    settings. Folders and suffixes of files do not count; random weights are ``random``, with the name of
    timm's model if it is one. Two networks are ``ONE+OTHER``.
    """
    networks = [part for part in (settings or {}).values() if isinstance(part, Mapping) and "weights" in part]
    weights = [_weights(network) for network in networks or [settings or {}]]
    return "+".join(_names_of_weights().get(name, name) for name in weights)


def _weights(backbone: Mapping[str, Any]) -> str:
    """The name of the file, folder or repository with the weights; of a UNet of its own, if it has one."""
    path = str(backbone.get("unet") or backbone.get("weights") or _UNKNOWN)
    if path == "random" and "model" in backbone:
        path += f" {backbone['model']}"
    return re.sub(r"\.(safetensors|ckpt|pth|pt|bin|tar|pyth)$", "", path.rstrip("/").rpartition("/")[2])


@cache
def _names_of_weights() -> dict[str, str]:
    """Names of the files in ``conf/backbone`` by their weights."""
    files = {path.stem: OmegaConf.load(path) for path in sorted(CONF.glob("backbone/*.yaml"), reverse=True)}
    plain: dict[str, Any] = {name: OmegaConf.to_container(file) for name, file in files.items()}
    found = {_weights(settings): name for name, settings in plain.items()}
    return {file: name for file, name in found.items() if file.split()[0] not in (_UNKNOWN, "random")}


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
    before = {"paths": now.get("paths"), **before}  # evaluations of earlier versions have none
    old, new = dict(_flatten(_relevant(before))), dict(_flatten(_relevant(now)))
    keys = [key for key in sorted({*old, *new}) if not _IGNORED_KEYS.match(key)]
    pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in keys}
    return [
        f"{key} {was} -> {is_now}"
        for key, (was, is_now) in pairs.items()
        if _relative(was, before) != _relative(is_now, now)
    ]


def relevant_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that affect the results, by key; folders of ``paths`` by their names."""
    flat = _flatten(_relevant(settings))
    return {key: _relative(value, settings) for key, value in flat if not _IGNORED_KEYS.match(key)}


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
    folder: Path,
    settings: AblationSettings,
    scores: Mapping[str, Mapping[str, float]],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write ``finished.json``, as the last step of a run.

    Args:
        folder: of the run.
        settings: of the run.
        scores: fractions by evaluation set and metric (``pq``, ``map``, ``miou``).
        training: of an evaluation, the settings that its network was trained with, as far as they are known.
    """
    known = {name: {k: v for k, v in by.items() if math.isfinite(v)} for name, by in scores.items()}
    content = {"settings": vars(settings), "scores": known}
    content |= {} if training is None else {"training": dict(training)}
    write_text(folder / FINISHED, json.dumps(content, indent=1) + "\n")


def is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder contains a finished run with these settings."""
    if not (folder / FINISHED).exists():
        return False
    kept = read_settings(folder)
    return kept is not None and not list_changes(kept, settings)


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
