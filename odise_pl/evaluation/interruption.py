"""An evaluation that is told to stop saves what is done, and its exit code tells that it is unfinished."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import lightning

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """The evaluation was interrupted (Ctrl-C) or preempted; the exit code is 128 + signal, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signal = signal.Signals(signum).name


class Interruption:
    """Turns SIGINT and SIGTERM into :class:`Stopped`, but never while a batch is scored.

    Lightning would end a preempted evaluation with code 0, as if it were finished, and an interrupted one
    wherever it is.

    Args:
        trainer: whose own processes on this machine are told, too.
    """

    def __init__(self, trainer: lightning.Trainer) -> None:
        self._trainer = trainer
        self._held, self._pending = False, 0

    def listen(self) -> None:
        """From now on; Lightning puts back the handlers that were there when the trainer ends."""
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        launcher = self._trainer.strategy.launcher
        if launcher is not None and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGTERM)  # ranks that this process has started
        if self._held:
            self._pending = signum
        else:
            self._stop(signum)

    def _stop(self, signum: int) -> None:
        for other in _SIGNALS:  # impatience must not cut the saving short
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(signum)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What must not be cut in two; a signal takes effect at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            self._stop(self._pending)
