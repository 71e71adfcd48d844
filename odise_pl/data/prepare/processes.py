"""Run tasks in worker processes that end with their parent. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from odise_pl.data.records import DataError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def run(
    function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int, chunk: int = 1
) -> Iterator[_Result]:
    """Yield the results in the order of the tasks; in this process when ``workers`` is 1.

    Args:
        function: must be picklable, like its arguments and results.
        tasks: its arguments.
        workers: number of processes.
        chunk: tasks that a process takes at once.

    Raises:
        DataError: a worker process was killed.
    """
    if workers == 1 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    # Spawned, not forked: a forked process would inherit the lock of the folder.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_exit_with_parent)
    try:
        yield from pool.map(function, tasks, chunksize=chunk)
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed, probably out of memory; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def run_with_progress(
    function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int, what: str, chunk: int = 1
) -> list[_Result]:
    """Like :func:`run`, with a progress bar on stderr."""
    results = run(function, tasks, workers, chunk)
    return list(track(results, what, len(tasks), console=Console(stderr=True)))


def _exit_with_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
