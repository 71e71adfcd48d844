"""What breaks a run from outside: each in one clear message on rank 0, or in an exit code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from odise_pl.checkpoints.files import last_checkpoint
from odise_pl.distributed.shutdown import Preempted, end_with_parent
from odise_pl.errors import UserError
from odise_pl.files import write_text

_CONNECTION = ("connection closed by peer", "connection reset", "nccl", "gloo", "broken pipe", "c10d")
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
OUT_OF_MEMORY = (
    "out of memory: lower data.batch_size (gradients are accumulated, the global batch stays), lower "
    "backbone.window_batch, to 1 at the least, or set backbone.checkpoint_activations=true"
)
_GRACE = 2.0  # seconds within which a rank that failed has left its message


class RankLostError(UserError, RuntimeError):
    """Another rank of the run has ended or cannot be reached."""


class OutOfMemoryError(UserError, MemoryError):
    """The network and its batch do not fit in memory."""


@contextmanager
def clear_faults(trainer: lightning.Trainer, run_dir: str | Path) -> Iterator[None]:
    """Say what happened to training, on rank 0 also what happened to another rank.

    Args:
        trainer: that trains.
        run_dir: where a rank leaves its message for rank 0.

    Raises:
        OutOfMemoryError: names the settings that need less.
        RankLostError: another rank ended; with its own message if it left one.
        Preempted: Lightning was told to end.
    """
    messages, rank = Path(run_dir, ".faults"), trainer.global_rank
    if rank == 0:
        _forget(messages)
    end_with_parent(trainer)
    try:
        yield
    except SIGTERMException as error:  # of Lightning's own handler: its exit code would be 0
        raise Preempted(trainer) from error
    except Exception as error:
        known = _known(error, messages if trainer.world_size > 1 else None, last_checkpoint(run_dir))
        if rank and not isinstance(known, RankLostError):
            _leave(messages, rank, known)
        if known is error:
            raise
        raise known from error
    finally:
        if rank == 0:
            _forget(messages)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine has no memory left."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in text for word in _MEMORY)


def _known(error: Exception, messages: Path | None, last: Path | None) -> Exception:
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        way = f"; the same command with them and ckpt=last goes on from {last.name}" if last else ""
        return OutOfMemoryError(f"{OUT_OF_MEMORY}{way}")
    text = str(error).lower()
    distributed = isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in _CONNECTION)
    )
    if messages is None or not distributed:
        return error
    return RankLostError(
        f"another process of this run has ended or cannot be reached ({_reason(error, messages)}); the same "
        f"command goes on from the last checkpoint"
    )


def _reason(error: Exception, messages: Path) -> str:
    """The message of the rank that failed first, or what this one noticed."""
    limit = time.monotonic() + _GRACE
    while not (left := _left(messages)) and time.monotonic() < limit:
        time.sleep(0.1)
    return left or str(error).strip().splitlines()[0]


def _left(messages: Path) -> str:
    with suppress(OSError):
        for path in sorted(messages.glob("rank_*.txt"), key=lambda path: path.stat().st_mtime_ns):
            return f"{path.stem.replace('_', ' ')}: {path.read_text(encoding='utf-8')}"
    return ""


def _leave(messages: Path, rank: int, error: Exception) -> None:
    with suppress(OSError):
        messages.mkdir(parents=True, exist_ok=True)
        write_text(messages / f"rank_{rank}.txt", f"{type(error).__name__}: {error}")


def _forget(messages: Path) -> None:
    with suppress(OSError):
        for path in messages.glob("*"):
            path.unlink(missing_ok=True)
        messages.rmdir()
