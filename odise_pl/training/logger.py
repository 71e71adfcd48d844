"""TensorBoard's log, written so that a full disk costs curves and not the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger

_log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """TensorBoard's log; while it cannot be written, training continues without it.

    A writer that failed stays broken. Each :meth:`save`, which is called at checkpoints, tries a new one,
    with a file of its own; what is logged in between is lost.
    """

    _failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Points of curves, by name."""
        if not self._failed:
            with self._unless_full():
                super().log_metrics(metrics, step)

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture, uint8 [H, W, 3]; on rank 0."""
        if not self._failed:
            with self._unless_full():
                self.experiment.add_image(name, picture, step, dataformats="HWC")

    def save(self) -> None:
        """Flush all that was logged to the disk."""
        self._failed = False
        with self._unless_full():
            super().save()

    def finalize(self, status: str) -> None:
        """Write the rest."""
        with self._unless_full():
            super().finalize(status)

    @contextmanager
    def _unless_full(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__  # Lightning wraps it
            if not isinstance(cause, OSError):
                raise
            _log.error("the curves in %s cannot be written: %s; training continues", self.log_dir, cause)
            self._failed = True
            with suppress(OSError):
                self.experiment.file_writer = self.experiment.all_writers = None  # it opens a new file
