"""A cluster asks a run to end: after the batch in hand, on all ranks, with an exit code that says so."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

_log = logging.getLogger(__name__)
# Slurm sends SIGUSR1 where a job asks for it ahead of time.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """A run ended because it was asked to, with everything saved.

    The exit code is 128 + signal, as in shells: 143 of SIGTERM and of what stands for it, 130 of Ctrl-C.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM))


class StopRequest:
    """Whether this process or another rank was asked to end.

    It takes the place of Lightning's handlers, which talk to other ranks while these may be in the middle of
    something else, and end with exit code 0. Handlers that were there before Lightning's are still called,
    and Ctrl-C ends the program at once when it comes again.
    """

    def __init__(self) -> None:
        self.here = False
        self._number: int = signal.SIGTERM
        self._trainer: lightning.Trainer | None = None
        self._before: dict[int, Any] = {}

    def listen(self, trainer: lightning.Trainer) -> None:
        """Begin; to be called when Lightning has set its own handlers, which it takes back by itself."""
        self._trainer, self.here = trainer, trainer.received_sigterm
        if threading.current_thread() is not threading.main_thread():
            return
        original = trainer._signal_connector._original_handlers
        self._before = {number: original.get(number) for number in SIGNALS if number != signal.SIGINT}
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        if not self.here and self._trainer is not None and starts_others(self._trainer):
            self._trainer.strategy.launcher.kill(signal.SIGTERM)  # type: ignore[union-attr]
        self.here, self._number = True, number
        if callable(self._before.get(number)):
            self._before[number](number, frame)

    def anywhere(self) -> bool:
        """Whether any rank was asked; all ranks have to ask at the same time."""
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1:
            return self.here
        return trainer.strategy.reduce_boolean_decision(self.here, all=False)

    def end(self) -> SystemExit:
        """What is to be raised; with exit code 0 in a process that Lightning started.

        Lightning kills rank 0 when one of these ends with anything else.
        """
        child = self._trainer is not None and self._trainer.local_rank > 0 and starts_others(self._trainer)
        return SystemExit(0) if child else Preempted(self._number)


def starts_others(trainer: lightning.Trainer) -> bool:
    """Whether the ranks of this machine were started by its first one, not by Slurm or torchrun."""
    strategy = trainer.strategy
    return (
        isinstance(strategy, ParallelStrategy)
        and isinstance(strategy.launcher, _SubprocessScriptLauncher)
        and strategy.cluster_environment is not None
        and not strategy.cluster_environment.creates_processes_externally
    )
