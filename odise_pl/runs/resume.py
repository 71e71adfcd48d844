"""Whether a training run starts, resumes or is finished. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from odise_pl.checkpoints.files import LAST, checkpoint_folder, last_checkpoint
from odise_pl.errors import SettingError
from odise_pl.runs.record import FINISHED, changes, in_sweep, read_settings

_log = logging.getLogger(__name__)
_SHOWN = 6  # changed settings in a message
_OPTIMISATION = ("optimizer.", "global_batch ")  # what a checkpoint's optimiser state depends on


def resolve_resume(config: DictConfig, settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a training run resumes from; None: it starts.

    Without ``ckpt`` the settings decide: a run with the same settings resumes, one with others is refused.

    Args:
        config: composed.
        settings: the same, resolved.

    Raises:
        SettingError: another run lies in its folder, or a resumed optimiser would get other settings.
    """
    folder = Path(config.run_dir)
    if (folder / FINISHED).exists() and (config.ckpt is None or in_sweep()):
        raise SettingError(
            f"{folder} holds a finished run with other settings; name another with run=NAME, or delete it"
        )
    if config.ckpt is not None:
        path = checkpoint_path(config.ckpt, folder)
        _refuse_other_optimiser(config, settings, path)
        return path
    last = last_checkpoint(folder)
    if last is not None:
        _refuse_other_settings(config, settings, last)
        _log.info("%s: resuming from %s", folder, last.name)
    return last


def checkpoint_path(ckpt: str, run_dir: str | Path) -> Path:
    """The file that ``ckpt`` names; ``last`` is the newest of this run."""
    if ckpt != "last":
        return Path(ckpt)
    return last_checkpoint(run_dir) or checkpoint_folder(run_dir) / LAST


def _refuse_other_settings(config: DictConfig, settings: Mapping[str, Any], last: Path) -> None:
    kept = read_settings(Path(config.run_dir))
    found = [] if kept is None else changes(kept, settings)
    if found:
        raise SettingError(
            f"run {config.run} exists with other settings ({_some(found)}): add run=NAME to start "
            f"another, or ckpt=last to resume from {last.name} with these settings"
        )


def _refuse_other_optimiser(config: DictConfig, settings: Mapping[str, Any], path: Path) -> None:
    """A resumed run keeps its optimiser, whose state is in the checkpoint."""
    kept = read_settings(path.absolute().parent.parent)
    found = [] if kept is None else [c for c in changes(kept, settings) if c.startswith(_OPTIMISATION)]
    if found:
        raise SettingError(
            f"ckpt={config.ckpt}: a resumed run keeps its optimiser ({_some(found)}); leave these options as "
            f"they were, or start a new run from the weights with init_from={path}"
        )


def _some(found: list[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
