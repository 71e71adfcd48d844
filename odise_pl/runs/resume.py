"""The same command again: whether a run goes on, is done, or is another one. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from odise_pl.checkpoints.files import last_checkpoint
from odise_pl.errors import SettingError
from odise_pl.files import write_text
from odise_pl.runs.record import MARKER, computed, digest_of, in_sweep, is_finished

_log = logging.getLogger(__name__)
_SHOWN = 6  # changed settings in a message
_RENAMED = {"backbone": {"train_window": "window"}}  # settings of earlier versions, by section
_MOVED = (
    *(
        (f"odise_pl.{name}.", f"odise_pl.models.{name}.")
        for name in ("build", "inference", "odise", "backbones")
    ),
    ("odise_pl.optimization.", "odise_pl.training.optimization."),
)


def goes_on(config: DictConfig) -> bool:
    """Whether a training run has anything left to do; sets ``ckpt`` where it was stopped in the middle.

    Without ``ckpt``, the settings decide: a run with the same settings goes on, one with others is refused.

    Raises:
        SettingError: another run is in its folder.
    """
    folder = Path(config.run_dir)
    if (folder / MARKER).exists() and _finished(config):
        _log.info("%s is finished: skipped", folder)
        return False
    last = last_checkpoint(folder)
    if config.ckpt is None and last is not None:
        _refuse_another(config, last)
        config.ckpt = "last"
        _log.info("%s was stopped: it goes on from %s", folder, last.name)
    return True


def _finished(config: DictConfig) -> bool:
    digest = digest_of(config)
    if config.ckpt is None or in_sweep():
        return is_finished(Path(config.run_dir), digest)
    try:  # ckpt says that it is meant: a finished run may go on with other settings
        return is_finished(Path(config.run_dir), digest)
    except SettingError:
        return False


def _refuse_another(config: DictConfig, last: Path) -> None:
    kept = newest_kept(Path(config.run_dir))
    changes = [] if kept is None else _changes(computed(kept), computed(config))
    if not changes:
        return
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    raise SettingError(
        f"run {config.run} exists with other settings ({', '.join(changes[:_SHOWN])}{more}): add run=NAME to "
        f"start another, or ckpt=last to let it go on from {last.name} with these settings"
    )


def newest_kept(folder: Path) -> DictConfig | None:
    """The configuration that a run was last started with, if it is there."""
    paths = sorted((path for path in folder.glob("config*.yaml") if path.stat().st_size), key=_number)
    if not paths:
        return None
    kept = OmegaConf.create(current_names(OmegaConf.to_container(OmegaConf.load(paths[-1]))))
    assert isinstance(kept, DictConfig)
    return kept


def current_names(settings: Any, section: str = "") -> Any:
    """Settings by this version's names where an earlier version wrote them: keys, and modules that moved."""
    if isinstance(settings, Mapping):
        renamed = _RENAMED.get(section, {})
        return {renamed.get(key, key): current_names(value, str(key)) for key, value in settings.items()}
    if section == "_target_" and isinstance(settings, str):
        return next(
            (new + settings.removeprefix(old) for old, new in _MOVED if settings.startswith(old)), settings
        )
    return settings


def _number(path: Path) -> int:
    return int(path.stem.partition("_")[2] or 0)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted({*old, *new})
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def keep(config: DictConfig) -> None:
    """Write the configuration into the run's folder, beside the earlier ones unless it is the last again."""
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    kept = newest_kept(folder)
    if kept is not None and _but_ckpt(kept) == _but_ckpt(config):
        return
    number = 0 if kept is None else 1 + max(_number(path) for path in folder.glob("config*.yaml"))
    write_text(folder / (f"config_{number}.yaml" if number else "config.yaml"), OmegaConf.to_yaml(config))


def _but_ckpt(config: DictConfig) -> dict[Any, Any]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {key: value for key, value in plain.items() if key != "ckpt"}
