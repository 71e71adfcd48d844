"""Sweeps: runs are named by the settings that vary, one that fails does not stop the others; searches.

Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from odise_pl.errors import find_user_error, report_user_errors
from odise_pl.runs.record import in_sweep

# of hydra/sweeper=optuna: the plugin would minimise, propose two runs at a time, other ones at each
# repetition, and stop at the first failure; a file in conf/ cannot replace defaults of a plugin
_SEARCH = {"direction": "maximize", "n_jobs": 1, "max_failure_rate": 1.0, "sampler.seed": 0}


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


class NameRuns(Callback):
    """Name the runs of a sweep by the settings that vary."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove fixed settings from ``hydra.job.override_dirname``."""
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        fixed = [o.key_or_group for o in overrides if not o.is_sweep_override()]
        keys = sorted({*config.hydra.job.config.override_dirname.exclude_keys, *fixed})
        listed = ",".join(f"'{key}'" for key in keys)
        with read_write(config):  # Hydra composes the runs from this list
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{listed}]")


class MaximiseScore(Callback):
    """Let a search by Optuna maximise the score of runs, and propose the same runs when it is repeated."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Set the sweeper's options that the command line does not."""
        sweeper = config.hydra.sweeper
        if not sweeper["_target_"].endswith("OptunaSweeper"):
            return
        given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.hydra))
        keys = {override.key_or_group.removeprefix("hydra.sweeper.") for override in given}
        with read_write(config):
            for key, value in _SEARCH.items():
                section, _, name = key.rpartition(".")
                if key not in keys and name in (sweeper[section] if section else sweeper):
                    OmegaConf.update(sweeper, key, value)
