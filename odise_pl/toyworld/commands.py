"""The project's programs, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from odise_pl.errors import UserError


class CommandError(UserError):
    """A program has failed; its own message stands above."""


def call(*command: str, threads: int | None = None) -> None:
    """``python COMMAND``, which is shown before it starts.

    Args:
        command: the program's arguments.
        threads: it computes with; by default as many as it likes.

    Raises:
        CommandError: it has failed.
    """
    print(f"$ python {' '.join(command)}", flush=True)
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    if subprocess.run([sys.executable, *command], check=False, env=environment).returncode:
        raise CommandError(f"python {' '.join(command)} has failed; the same command goes on from there")
