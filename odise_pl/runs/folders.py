"""Whether files can be written where a configuration wants them; asked before anything heavy loads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


def unwritable(folder: Path) -> str | None:
    """Why a folder cannot be written or made; None if it can."""
    place = folder
    while not place.exists():
        if place == place.parent:
            return f"{folder} cannot be made"
        place = place.parent
    if not place.is_dir():
        return f"{place} is a file, not a folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} cannot be written"
    return None


@contextmanager
def hydra_settings(config: DictConfig) -> Iterator[DictConfig]:
    """A copy of a configuration whose references to Hydra's own settings are resolved by itself."""
    instance = HydraConfig.instance()
    before, own = instance.cfg, deepcopy(config)  # what is set is made read-only
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
