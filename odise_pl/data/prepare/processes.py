"""Run tasks in worker processes that end with their parent. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from odise_pl.data.records import DataError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def run(
    function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int, what: str, chunk: int = 1
) -> list[_Result]:
    """The results in the order of the tasks, with a progress bar on stderr.

    Args:
        function: must be picklable, like its arguments and results.
        tasks: its arguments.
        workers: number of processes; 1 uses this process.
        what: description of the progress bar.
        chunk: tasks that a process takes at once.

    Raises:
        DataError: a worker process was killed.
    """
    progress = partial(track, description=what, total=len(tasks), console=Console(stderr=True))
    if workers == 1 or len(tasks) < 2:
        return list(progress(map(function, tasks)))
    # Spawned, not forked: a forked process would inherit the lock of the folder.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_exit_with_parent)
    try:
        return list(progress(pool.map(function, tasks, chunksize=chunk)))
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed, probably out of memory; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _exit_with_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
