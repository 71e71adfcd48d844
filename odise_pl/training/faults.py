"""What ends training from outside, as one clear message or an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from odise_pl.distributed.shutdown import Preempted
from odise_pl.errors import UserError

_CONNECTION = ("connection closed by peer", "connection reset", "nccl", "gloo", "broken pipe", "c10d")
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
OUT_OF_MEMORY = (
    "out of memory: lower data.batch_size (gradients are accumulated, the global batch stays), lower "
    "backbone.window_batch, to 1 at the least, or set backbone.checkpoint_activations=true"
)


class RankLostError(UserError, RuntimeError):
    """Another rank of the run has ended or cannot be reached."""


class OutOfMemoryError(UserError, MemoryError):
    """The network and its batch do not fit in memory."""


class WorkerLostError(UserError, RuntimeError):
    """A process that loads data was killed or failed."""


@contextmanager
def explain_faults(trainer: lightning.Trainer) -> Iterator[None]:
    """Replace errors of libraries by errors of this project.

    Raises:
        OutOfMemoryError: names the settings that need less.
        WorkerLostError: a process that loads data was killed.
        RankLostError: another rank ended, which has printed its own message.
        Preempted: a signal arrived before training began.
    """
    try:
        yield
    except UserError:
        raise
    except SIGTERMException as error:  # of Lightning's own handler: its exit code would be 0
        raise Preempted from error
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{OUT_OF_MEMORY}; add ckpt=last to resume a run that has saved"
            ) from error
        if "DataLoader worker" in str(error):
            raise WorkerLostError(
                f"{error}; run the command again to resume, with data.num_workers=0 if it repeats"
            ) from error
        if trainer.world_size > 1 and _is_of_connection(error):
            cause = str(error).strip().partition("\n")[0]
            raise RankLostError(
                f"another rank of this run has ended or cannot be reached ({cause}); see its own message, "
                "and run the command again to resume from the last checkpoint"
            ) from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine has no memory left."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in text for word in _MEMORY)


def _is_of_connection(error: Exception) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _CONNECTION)
