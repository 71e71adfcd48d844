"""The project's programs, each in a process of its own."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Self

from odise_pl.errors import UserError
from odise_pl.runs.command_line import quoted

# what Hydra takes as it is, and never for a number
_PLAIN = re.compile(r"[A-Za-z0-9_.+/-]*/[A-Za-z0-9_.+/-]*")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CommandError(UserError):
    """A program has failed; its own message stands above."""


def setting(key: str, value: Path) -> str:
    """``KEY=VALUE`` of ``train.py``, in quotes where Hydra would not take the path as it is."""
    text = str(value)
    return f"{key}={text if _PLAIN.fullmatch(text) else quoted(text)}"


def add_overrides(parser: argparse.ArgumentParser, help: str) -> None:
    """``--set KEY=VALUE``, any number of times: ``overrides``, further settings of ``train.py``."""
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=help
    )


class Programs:
    """Runs programs and, as a context, passes on to them what asks this process to end.

    Training saves its last step then. Each program has a process group of its own: Ctrl-C in a terminal
    reaches it once, by way of this process, which waits for its end.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # a signal may come while its thread holds it
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def call(self, *command: str, threads: int | None = None) -> None:
        """``python COMMAND``, which is shown before it starts.

        Args:
            command: the program's arguments.
            threads: it computes with; by default as many as it likes.

        Raises:
            CommandError: it has failed.
            SystemExit: this process was asked to end; with the exit code of shells, 128 + signal.
        """
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        with self._lock:
            self._end_if_asked()
            print(f"$ python {shlex.join(command)}", flush=True)
            process = subprocess.Popen([sys.executable, *command], env=environment, process_group=0)
            self._running.add(process)
        try:
            failed = process.wait()
        finally:
            with self._lock:
                self._running.remove(process)
        self._end_if_asked()
        if failed:
            raise CommandError(
                f"python {shlex.join(command)} has failed; when what it says is mended, the same command "
                f"goes on"
            )

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        with self._lock:
            self._asked = number
            for process in self._running:
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            if not self._running:
                self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self._asked is not None:
            raise SystemExit(128 + self._asked)
