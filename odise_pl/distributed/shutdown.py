"""A run is asked to end: what is done is saved, on all ranks, and the exit code says it is unfinished."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import lightning
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from odise_pl.distributed.launch import first_process

_LAST_WORDS = 4.0  # seconds, more than a rank waits for the message of one that failed
# Slurm sends SIGUSR1 where a job asks for it ahead of time.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """A run ended because it was asked to, with everything saved.

    The exit code is 128 + signal, as in shells: 143 of SIGTERM and of what stands for it, 130 of Ctrl-C.
    It is 0 in a process that Lightning started, which kills rank 0 when one of these ends with anything else,
    be it before that one has saved its part.

    Args:
        trainer: of this process.
        number: of the signal.
    """

    def __init__(self, trainer: lightning.Trainer, number: int = signal.SIGTERM) -> None:
        code = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        super().__init__(0 if trainer.local_rank > 0 and is_launched_by_lightning(trainer) else code)
        self.signal = signal.Signals(number).name


class StopRequest:
    """Whether this process or another rank was asked to end; for steps that all ranks make together.

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
        _put_killing_off()
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
        self.here, self._number = True, number
        if callable(self._before.get(number)):
            self._before[number](number, frame)

    def anywhere(self) -> bool:
        """Whether any rank was asked; all ranks have to ask at the same time."""
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1:
            return self.here
        return trainer.strategy.reduce_boolean_decision(self.here, all=False)

    def end(self) -> Preempted:
        """What is to be raised."""
        assert self._trainer is not None  # nobody was asked before it listened
        return Preempted(self._trainer, self._number)


class Interruption(StopRequest):
    """Ends a process as soon as it is asked to, whatever other ranks do, but not while it is :meth:`held`.

    For work that ranks do apart from one another and of which nothing but the piece in hand is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held = False

    def listen(self, trainer: lightning.Trainer) -> None:
        """Begin; Preempted at once if Lightning was asked before."""
        super().listen(trainer)
        self._end_if_asked()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.here and self._trainer is not None and is_launched_by_lightning(self._trainer):
            self._trainer.strategy.launcher.kill(signal.SIGTERM)  # type: ignore[union-attr]
        super()._note(number, frame)
        if self._held:
            signal.signal(number, self._note)  # Ctrl-C does not cut it when it comes again, either
        self._end_if_asked()

    def _end_if_asked(self) -> None:
        if not self.here or self._held:
            return
        for number in SIGNALS:  # impatience must not cut the saving short
            signal.signal(number, signal.SIG_IGN)
        raise self.end()

    @contextmanager
    def held(self) -> Iterator[None]:
        """What must not be cut in two; a signal takes effect at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._end_if_asked()


def is_launched_by_lightning(trainer: lightning.Trainer) -> bool:
    """Whether the ranks of this machine are processes of its first one, not started by Slurm or torchrun.

    Lightning itself does not tell any more once it has started them.
    """
    strategy = trainer.strategy
    return (
        isinstance(strategy, ParallelStrategy)
        and isinstance(strategy.launcher, _SubprocessScriptLauncher)
        and isinstance(strategy.cluster_environment, LightningEnvironment)
    )


def end_with_parent(trainer: lightning.Trainer) -> None:
    """In a process that a first rank has started: end when that one is gone; nobody else would see to it.

    It may be gone already, since a process needs seconds to come here.
    """
    if trainer.local_rank == 0 or not is_launched_by_lightning(trainer):
        return
    parent = first_process()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _put_killing_off() -> None:
    """Lightning kills the first rank when it sees that another is dead: not before it has said so."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver) and not isinstance(thread._terminate_all, partial):
            thread._terminate_all = partial(_kill_later, thread._terminate_all)  # type: ignore[method-assign]


def _kill_later(kill: Callable[[], None]) -> None:
    time.sleep(_LAST_WORDS)
    kill()
