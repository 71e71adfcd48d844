"""A lock on the folder of a run, and ranks that end with the process that launched them. Imports no torch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from odise_pl.errors import SettingError

_FIRST = "ODISE_PL_FIRST_PROCESS"
_RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK")  # of torchrun, Slurm, Lightning


def watch_first_process() -> None:
    """Call this when a program starts: ranks that Lightning launches end with the first process."""
    if "LOCAL_RANK" not in os.environ:
        os.environ[_FIRST] = str(os.getpid())
    elif is_launched_by_lightning():
        threading.Thread(target=_end_with, args=(int(os.environ[_FIRST]),), daemon=True).start()


def is_launched_by_lightning() -> bool:
    """Whether this process is another rank of a program that was started without torchrun or srun."""
    own, first = str(os.getpid()), os.environ.get(_FIRST)
    return first not in (None, own) and "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def sole_run(run_dir: str | Path, timeout: float = 60.0) -> Iterator[None]:
    """Hold a lock on the folder of a run, on rank 0; file systems without locks are trusted.

    Args:
        run_dir: the folder.
        timeout: seconds to wait for a run that is still saving.

    Raises:
        SettingError: another process trains in this folder; names it.
    """
    if any(os.environ.get(name, "0") != "0" for name in _RANKS):
        yield
        return
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(run_dir, ".lock"), timeout=timeout)
    try:
        lock.acquire()
    except Timeout as error:
        raise SettingError(
            f"{run_dir} is in use by another process: wait for it to end, or start another run with run=NAME"
        ) from error
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release()
