"""Signals that stop a run: progress is saved on all ranks, and the exit code says that it is unfinished."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning

from odise_pl.distributed.processes import is_launched_by_lightning

# Slurm sends SIGUSR1 where a job asks for it ahead of time.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """A signal ended the program; the same command resumes.

    The exit code is 130 after Ctrl-C and 143 after any other signal. It is 0 in a process that Lightning
    launched: else Lightning would kill rank 0, which may still be saving.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        code = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        super().__init__(0 if is_launched_by_lightning() else code)
        self.signal = signal.Signals(number).name


class StopRequest:
    """Whether a signal asked this rank to stop; a second Ctrl-C interrupts it immediately.

    Its handlers replace Lightning's, which run a collective inside a signal handler and exit with 0.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._launcher: Any = None

    def listen(self, trainer: lightning.Trainer) -> None:
        """Install the handlers, after Lightning has installed its own; it restores the earlier ones."""
        self._launcher = trainer.strategy.launcher
        self.number = signal.SIGTERM if trainer.received_sigterm else None
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        self.number = number


class Interruption(StopRequest):
    """Ends a rank as soon as a signal arrives, whatever other ranks do.

    For work that ranks do independently, so that at most the current piece is lost.
    """

    def listen(self, trainer: lightning.Trainer) -> None:
        """Install the handlers; raises Preempted if Lightning received a signal before."""
        super().listen(trainer)
        self._stop_if_asked()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None and self._launcher is not None:
            self._launcher.kill(signal.SIGTERM)  # passes the signal on to the other ranks of this program
        self.number = number
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.number is None:
            return
        for number in SIGNALS:  # a second signal must not interrupt the exit
            signal.signal(number, signal.SIG_IGN)
        raise Preempted(self.number)
