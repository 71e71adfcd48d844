"""Callbacks of Hydra before the first run: check its folder, name the runs of a sweep, check their settings.

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

from odise_pl.errors import report_user_errors, user_error
from odise_pl.runs.checks import training_problems, unwritable
from odise_pl.runs.record import in_sweep

_SHOWN = 3


@contextmanager
def report_errors() -> Iterator[None]:
    """:func:`report_user_errors`; in a sweep, an error ends one run alone, and the sweep ends with it."""
    if not in_sweep():
        with report_user_errors():
            yield
        return
    try:
        yield
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        # of this kind, Hydra shows the message alone when the sweep is finished
        raise CompactHydraException(f"error: {known}") from None


@contextmanager
def hydra_settings(config: DictConfig) -> Iterator[DictConfig]:
    """A copy of a configuration whose references to Hydra's own settings are resolved by itself."""
    instance = HydraConfig.instance()
    before, own = instance.cfg, deepcopy(config)  # set_config makes it read-only
    try:
        instance.set_config(own)
        yield own
    finally:
        instance.cfg = before


class CheckRunFolder(Callback):
    """Says in one line that the folder of a run cannot be made, which Hydra does before anything else."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the program unless the folder can be written."""
        self._check(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """The same for the folder of a sweep."""
        self._check(config, "sweep")

    def _check(self, config: DictConfig, mode: str) -> None:
        try:
            with hydra_settings(config) as own:
                folder = own.hydra[mode].dir
        except OmegaConfBaseException:
            return  # such as the name of a run that is itself swept: Hydra says what is wrong
        problem = unwritable(Path(folder))
        if problem is not None:
            # Hydra turns every other exception of a callback into a warning
            sys.exit(f"error: run folder {folder}: {problem}; choose another with run=NAME")


class NameRuns(Callback):
    """A run of a sweep is named by what is swept, not by what all its runs share."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave out of ``hydra.job.override_dirname`` what does not vary."""
        shared = [o.key_or_group for o in _overrides(config) if not o.is_sweep_override()]
        keys = sorted({*config.hydra.job.config.override_dirname.exclude_keys, *shared})
        listed = ",".join(f"'{key}'" for key in keys)
        with read_write(config):  # the runs' configurations are composed from these lists
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{listed}]")


class CheckSweep(Callback):
    """Looks at every combination of settings before the first one runs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the program if a run of the sweep could not start, with what is wrong in which runs."""
        found: dict[str, list[str]] = {}
        for name, combination in _combinations(config):
            for problem in training_problems(combination):
                found.setdefault(problem, []).append(name)
        if found:
            lines = [f"{problem} (in {_some(names)})" for problem, names in found.items()]
            # Hydra turns every other exception of a callback into a warning
            sys.exit("\n  - ".join(["error: cannot start the sweep:", *lines]))


def _some(names: list[str]) -> str:
    return "; ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _loader() -> ConfigLoader:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None  # it called us
    return hydra.config_loader


def _overrides(config: DictConfig) -> list[Override]:
    """What is set on the command line and swept by an experiment; nothing that another sweeper decides."""
    sweeper = config.hydra.sweeper
    if not str(sweeper["_target_"]).endswith(BasicSweeper.__name__):
        return []
    given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    return OverridesParser.create(config_loader=_loader()).parse_overrides(
        [*given, *config.hydra.overrides.task]
    )


def _combinations(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """What is swept in each run, and its configuration; nothing for what Hydra itself will refuse."""
    overrides = _overrides(config)
    swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    try:
        for combination in BasicSweeper.split_arguments(overrides, None)[0]:
            with hydra_settings(_loader().load_sweep_config(config, combination)) as run:
                yield " ".join(o for o in combination if o.partition("=")[0] in swept), run
    except HydraException:
        return
