"""What breaks a run from outside, as one clear message or as an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import SIGTERMException

from odise_pl.preemption import Preempted


@contextmanager
def clear_faults() -> Iterator[None]:
    """Say what happened to training."""
    try:
        yield
    except SIGTERMException as error:  # of Lightning's own handler: its exit code would be 0
        raise Preempted() from error
