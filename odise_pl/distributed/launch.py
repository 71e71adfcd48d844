"""Which processes make up a run, and that there is one of each run at a time. Imports no torch."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from odise_pl.errors import SettingError

_log = logging.getLogger(__name__)
_FIRST = "ODISE_PL_FIRST_PROCESS"
_RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK")  # of torchrun, Slurm, Lightning
_PATIENCE = 60.0  # seconds that a run which is ending has to save


def note_first_process() -> None:
    """To be called when a program starts: tells the processes that Lightning makes of it whose they are."""
    if "LOCAL_RANK" not in os.environ:
        os.environ[_FIRST] = str(os.getpid())


def first_process() -> int:
    """The process that started this one as another rank of its machine."""
    return int(os.environ.get(_FIRST) or os.getppid())


@contextmanager
def sole_run(run_dir: str | Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a lock on the folder of a run, on rank 0; it goes with the process, however that ends.

    File systems that have no locks are trusted.

    Args:
        run_dir: the folder.
        patience: seconds to wait for a run that is ending.

    Raises:
        SettingError: another process trains in this folder; names it.
    """
    if any(os.environ.get(name, "0") != "0" for name in _RANKS):
        yield
        return
    path = Path(run_dir, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _wait_for(file, run_dir, patience)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _wait_for(file: TextIO, run_dir: str | Path, patience: float) -> None:
    limit, told = time.monotonic() + patience, False
    while not _is_locked(file):
        holder = _holder(file)
        if time.monotonic() > limit:
            raise SettingError(
                f"{run_dir} is in use by {holder}: wait for its end, or start another run with run=NAME"
            )
        if not told:
            _log.info("%s is in use by %s: waiting for its end", run_dir, holder)
            told = True
        time.sleep(0.2)


def _is_locked(file: TextIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _holder(file: TextIO) -> str:
    with suppress(OSError):
        file.seek(0)
        return file.read() or "another process"
    return "another process"
