"""Hydra callbacks that check the run folder, name the runs of a sweep and check them before the first starts.

Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from odise_pl.errors import find_user_error, report_user_errors
from odise_pl.runs.checks import training_problems, unwritable
from odise_pl.runs.record import in_sweep

_SHOWN = 3


@contextmanager
def report_errors() -> Iterator[None]:
    """:func:`report_user_errors`; in a sweep, the other runs continue, and the sweep fails at the end."""
    if not in_sweep():
        with report_user_errors():
            yield
        return
    try:
        yield
    except Exception as error:
        known = find_user_error(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        # Hydra raises this at the end of the sweep, without a traceback
        raise CompactHydraException(f"error: {known}") from None


@contextmanager
def hydra_settings(config: DictConfig) -> Iterator[DictConfig]:
    """A copy of a configuration that resolves ``${hydra:...}`` to its own Hydra settings."""
    instance = HydraConfig.instance()
    before, own = instance.cfg, deepcopy(config)  # set_config makes it read-only
    try:
        instance.set_config(own)
        yield own
    finally:
        instance.cfg = before


class CheckRunFolder(Callback):
    """Check the run folder with a clear message, before Hydra creates it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit unless the run folder is writable."""
        self._check(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit unless the sweep folder is writable."""
        self._check(config, "sweep")

    def _check(self, config: DictConfig, mode: str) -> None:
        try:
            with hydra_settings(config) as own:
                folder = own.hydra[mode].dir
        except OmegaConfBaseException:
            return  # such as a swept run name, which Hydra reports
        problem = "it leads out of its folder" if ".." in Path(folder).parts else unwritable(Path(folder))
        if problem is not None:
            # Hydra turns other exceptions of callbacks into warnings
            sys.exit(f"error: run folder {folder}: {problem}; choose another with run=NAME")


class NameRuns(Callback):
    """Name the runs of a sweep by the settings that vary."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove fixed settings from ``hydra.job.override_dirname``."""
        shared = [o.key_or_group for o in _overrides(config) if not o.is_sweep_override()]
        keys = sorted({*config.hydra.job.config.override_dirname.exclude_keys, *shared})
        listed = ",".join(f"'{key}'" for key in keys)
        with read_write(config):  # Hydra composes the runs from this list
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{listed}]")


class CheckSweep(Callback):
    """Check all runs of a sweep before the first one starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with the problems of all runs, if there are any."""
        found: dict[str, list[str]] = {}
        for name, combination in _combinations(config):
            for problem in training_problems(combination):
                found.setdefault(problem, []).append(name)
        if found:
            lines = [f"{problem} (in {_some(names)})" for problem, names in found.items()]
            # Hydra turns other exceptions of callbacks into warnings
            sys.exit("\n  - ".join(["error: cannot start the sweep:", *lines]))


def _some(names: list[str]) -> str:
    return "; ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _loader() -> ConfigLoader:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None  # it called us
    return hydra.config_loader


def _overrides(config: DictConfig) -> list[Override]:
    """The overrides of the command line and of Hydra's basic sweeper; empty for other sweepers."""
    sweeper = config.hydra.sweeper
    if not str(sweeper["_target_"]).endswith(BasicSweeper.__name__):
        return []
    given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    return OverridesParser.create(config_loader=_loader()).parse_overrides(
        [*given, *config.hydra.overrides.task]
    )


def _combinations(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The swept settings and the configuration of each run, up to one that Hydra itself will refuse."""
    overrides = _overrides(config)
    swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    try:
        for combination in BasicSweeper.split_arguments(overrides, None)[0]:
            with hydra_settings(_loader().load_sweep_config(config, combination)) as run:
                yield " ".join(o for o in combination if o.partition("=")[0] in swept), run
    except HydraException:
        return
