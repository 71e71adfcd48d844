"""Decide whether a training run starts or resumes. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from odise_pl.checkpoints.files import LAST, checkpoint_folder, find_checkpoint, last_checkpoint
from odise_pl.errors import SettingError
from odise_pl.runs.record import FINISHED, in_sweep, list_changes, read_settings

_log = logging.getLogger(__name__)
_OPTIMISATION = ("optimizer.", "global_batch ")  # settings that the optimizer state depends on


def resolve_resume(config: DictConfig, settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a training run resumes from; None to start.

    Without ``ckpt``, a run with the same settings as before resumes, and one with other settings is refused.

    Args:
        config: composed.
        settings: the resolved settings of ``config``.

    Raises:
        SettingError: the folder contains another run, the checkpoint is missing, or the optimizer settings of
            a resumed run differ.
    """
    folder = Path(config.run_dir)
    if (folder / FINISHED).exists() and (config.ckpt is None or in_sweep()):
        found = list_changes(read_settings(folder) or {}, settings)
        raise SettingError(
            f"{folder} contains a finished run with other settings ({', '.join(found)}); start another with "
            "run=NAME, resume with these settings by ckpt=last, or delete the folder"
        )
    if config.ckpt is not None:
        path = checkpoint_path(config.ckpt, folder)
        _check_checkpoint(config, path)
        _check_optimizer(config, settings, path)
        return path
    last = last_checkpoint(folder)
    if last is not None:
        _check_settings(config, settings, last)
        _log.info("%s: resuming from %s", folder, last.name)
    return last


def checkpoint_path(ckpt: str, run_dir: str | Path) -> Path:
    """The file of a ``ckpt`` setting: ``last``, or what :func:`find_checkpoint` takes."""
    if ckpt == "last":
        return last_checkpoint(run_dir) or checkpoint_folder(run_dir) / LAST
    return find_checkpoint(ckpt) or Path(ckpt)


def _check_checkpoint(config: DictConfig, path: Path) -> None:
    """Refuse a checkpoint that is missing, and one of another run if this run has its own."""
    if not path.exists():
        raise SettingError(f"ckpt={config.ckpt}: {path} does not exist; remove ckpt to start a new run")
    if path.resolve().parent != checkpoint_folder(config.run_dir).resolve():
        if last_checkpoint(config.run_dir) is not None:
            raise SettingError(
                f"run {config.run} already has checkpoints: add run=NAME to resume {path} in another"
            )
        if config.init_from is not None:
            raise SettingError("init_from starts a new run, ckpt resumes one: give only one of them")


def _check_settings(config: DictConfig, settings: Mapping[str, Any], last: Path) -> None:
    kept = read_settings(Path(config.run_dir))
    found = [] if kept is None else list_changes(kept, settings)
    if found:
        way_out = f"or ckpt=last to resume from {last.name} with the new settings"
        if any(change.startswith(_OPTIMISATION) for change in found):
            way_out = f"with init_from={last} from its weights"
        raise SettingError(
            f"run {config.run} exists with other settings ({', '.join(found)}): add run=NAME to start "
            f"another, {way_out}"
        )


def _check_optimizer(config: DictConfig, settings: Mapping[str, Any], path: Path) -> None:
    kept = read_settings(path.absolute().parent.parent)
    found = [] if kept is None else [c for c in list_changes(kept, settings) if c.startswith(_OPTIMISATION)]
    if found:
        raise SettingError(
            f"ckpt={config.ckpt}: a resumed run keeps its optimizer settings ({', '.join(found)}); restore "
            f"them, or start a new run from the weights with run=NAME init_from={path}"
        )
