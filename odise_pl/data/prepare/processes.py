"""Work in several processes that die with their parent. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from odise_pl.data.records import DataError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def run(
    function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int
) -> Iterator[tuple[int, _Result]]:
    """Yield ``(index of the task, result)`` as they are done; in this process when ``workers`` is 1.

    Raises:
        DataError: a worker process was killed.
    """
    with Workers(workers) as some:
        yield from some.run(function, tasks)


class Workers:
    """Processes for several rounds of tasks; they start when they are first needed.

    Args:
        count: how many; with 1, tasks run in this process.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]
    ) -> Iterator[tuple[int, _Result]]:
        """A round, see :func:`run`."""
        if self.count == 1 or len(tasks) < 2:
            yield from ((index, function(task)) for index, task in enumerate(tasks))
            return
        pool = self._started()
        try:
            index_of = {pool.submit(function, task): index for index, task in enumerate(tasks)}
            for future in as_completed(index_of):
                yield index_of[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps for lack of memory; repeat with fewer --workers"
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, not forked: the progress bar has threads, and forked workers would hold the parent's
            # lock file.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_obey_parent)
        return self._pool


def _obey_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is killed (a pool's worker would wait for ever)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
