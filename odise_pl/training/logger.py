"""TensorBoard's log, written so that a full disk costs curves and not the run; the end of other logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

_log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """TensorBoard's log; while it cannot be written, training continues without it.

    A writer that failed stays broken. Each :meth:`save`, which is called at checkpoints, tries a new one,
    with a file of its own; what is logged in between is lost.
    """

    _failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Points of curves, by name."""
        self._try(super().log_metrics, metrics, step)

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture, uint8 [H, W, 3]; on rank 0."""
        self._try(lambda: self.experiment.add_image(name, picture, step, dataformats="HWC"))

    def save(self) -> None:
        """Flush all that was logged to the disk."""
        self._failed = False
        self._try(super().save)

    def finalize(self, status: str) -> None:
        """Write the rest."""
        self._try(super().finalize, status)

    def _try(self, write: Callable[..., object], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            write(*arguments)
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__  # Lightning wraps it
            if not isinstance(cause, OSError):
                raise
            _log.error("the curves in %s cannot be written: %s; training continues", self.log_dir, cause)
            self._failed = True
            with suppress(OSError):
                self.experiment.file_writer = self.experiment.all_writers = None  # it opens a new file


@contextmanager
def wandb_run(trainer: lightning.Trainer) -> Iterator[None]:
    """End the run of Weights & Biases with the training; the next one of a sweep would log into it.

    An incomplete training ends it with an error: ``resume=auto`` continues only such runs.
    """
    try:
        yield
    finally:
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            import wandb

            complete = not trainer.interrupted and trainer.global_step >= trainer.max_steps
            if wandb.run is not None:
                wandb.run.finish(exit_code=0 if complete else 1)
