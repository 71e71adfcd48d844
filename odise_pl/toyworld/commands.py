"""The project's programs, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from odise_pl.errors import UserError


class CommandError(UserError):
    """A program has failed; its own message stands above."""


def call(*command: str) -> None:
    """``python COMMAND``, which is shown before it starts.

    Raises:
        CommandError: it has failed.
    """
    print(f"$ python {' '.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command], check=False).returncode:
        raise CommandError(f"python {' '.join(command)} has failed; the same command goes on from there")
