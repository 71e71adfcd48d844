"""What ends training from outside, as one clear message or an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning
from lightning.pytorch.utilities.exceptions import SIGTERMException

from odise_pl.distributed.shutdown import Preempted
from odise_pl.errors import UserError

# By words in the type or message of a library's error: what to do.
_ADVICE = {
    ("out of memory", "outofmemory", "memoryerror", "allocate memory"): (
        "out of memory: lower data.batch_size (gradients are accumulated, the global batch stays), set "
        "backbone.window_batch=1 or, for a diffusion model, backbone.checkpoint_activations=true; "
        "add ckpt=last to resume"
    ),
    ("dataloader worker",): "run the command again to resume, with data.num_workers=0 if it repeats",
}
_CONNECTION = (
    *("connection closed by peer", "connection reset", "broken pipe", "nccl", "gloo", "c10d"),
    *("distbackenderror", "distnetworkerror", "diststoreerror"),
)
_LOST = "another rank of this run has ended or cannot be reached; see its message, and run again to resume"


class FaultError(UserError, RuntimeError):
    """Memory ran out, or another process of the run ended."""


@contextmanager
def explain_faults(trainer: lightning.Trainer) -> Iterator[None]:
    """Replace errors of libraries by errors of this project.

    Raises:
        FaultError: memory ran out, a process that loads data was killed, or another rank ended.
        Preempted: a signal arrived before training began.
    """
    try:
        yield
    except UserError:
        raise
    except SIGTERMException as error:  # of Lightning's own handler: its exit code would be 0
        raise Preempted from error
    except (RuntimeError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}".lower()
        advice = _ADVICE | ({_CONNECTION: _LOST} if trainer.world_size > 1 else {})
        for words, what_to_do in advice.items():
            if any(word in text for word in words):
                cause = str(error).strip().partition("\n")[0]
                raise FaultError(f"{what_to_do} ({cause})") from error
        raise
