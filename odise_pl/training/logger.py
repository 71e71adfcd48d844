"""What TensorBoard shows, written so that a full disk costs curves and not the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger

_log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """TensorBoard's log. While it cannot be written, training goes on without.

    The writer is of no use any more once it has failed. Another one, with a file of its own, is tried
    each time that :meth:`save` is called, which is at checkpoints; what is logged until then is not kept.
    """

    _failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Points of curves, by name."""
        if not self._failed:
            with self._if_possible():
                super().log_metrics(metrics, step)

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture, uint8 [H, W, 3]; on rank 0."""
        if not self._failed:
            with self._if_possible():
                self.experiment.add_image(name, picture, step, dataformats="HWC")

    def save(self) -> None:
        """Have all that was logged on the disk."""
        self._failed = False
        with self._if_possible():
            super().save()

    def finalize(self, status: str) -> None:
        """Write the rest."""
        with self._if_possible():
            super().finalize(status)

    @contextmanager
    def _if_possible(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__  # Lightning wraps it
            if not isinstance(cause, OSError):
                raise
            _log.error("the curves in %s cannot be written: %s; training goes on", self.log_dir, cause)
            self._failed, self._experiment = True, None
            self._kwargs.pop("purge_step", None)  # else the next writer would drop what the last one wrote
