"""Checkpoints of a run: written beside the old one and renamed, kept in number, whole when they are read."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint import CheckpointException

from odise_pl.checkpoints.files import LAST, saved_checkpoints
from odise_pl.checkpoints.position import translate
from odise_pl.distributed.shutdown import StopRequest
from odise_pl.errors import UserError

_log = logging.getLogger(__name__)


class SavingError(UserError, OSError):
    """The last checkpoint of a run cannot be written, or its ranks go on from different ones."""


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes to where it is told and waits for the disk; Lightning's takes the way over ``/tmp``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; raises OSError or RuntimeError when that fails."""
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class _NotingIO(DirectCheckpointIO):
    """Keeps what went wrong for later: rank 0 alone writes, and the others wait for it."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            self.error = error


class Checkpoints(Checkpoint):
    """Saves everything that a run needs to go on, and sees to it that a run ends well when it is asked to.

    A checkpoint is written under another name in the same folder and renamed when it is whole; ``last.ckpt``
    is a link to the newest one. It is always of the end of an optimiser step: between two of them weights and
    optimiser stay as they are, so a request to end is followed at once, and the images of a step that was
    not finished are used again. When one cannot be written, training goes on and the next one is tried.

    Args:
        dirpath: the folder.
        every_n_train_steps: optimiser steps between checkpoints.
        keep: how many are kept; with one, there is none to go back to when it is damaged.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 500, keep: int = 2) -> None:
        self.folder, self.every, self.keep = Path(dirpath), every_n_train_steps, max(keep, 1)
        self._io, self._stop = _NotingIO(), StopRequest()
        self._step = self._saved = self._tried = self._validated = 0
        self._validates = False
        self._loops: dict[str, Any] = {}

    # What Lightning calls

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Have checkpoints written by what can say that it failed."""
        trainer.strategy.checkpoint_io = self._io

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen to signals, and do what the run that is resumed was stopped in."""
        self._stop.listen(trainer)
        self._step = self._saved = self._tried = trainer.global_step
        if trainer.strategy.broadcast(self._step) != self._step:
            raise SavingError(
                f"rank {trainer.global_rank} goes on from step {self._step}, rank 0 from another: its "
                f"file system is behind; start the same command again"
            )
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.partial"):
                _remove(left)
        self._loops = _loops(trainer)
        if self._step and self._validates and self._validated != self._step:
            _validate(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember the place in training at the end of a step; what it logs is not written yet."""
        if trainer.global_step != self._step:
            self._step, self._loops = trainer.global_step, _loops(trainer)
            self._validates = _validates_now(trainer)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the step before this batch when it is time, or when the run has to end."""
        if self._tried != self._step and self._step % self.every == 0:
            self.save(trainer)
        if self._stop.anywhere():
            self._end(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save what validation takes; where nothing is trained, listen to signals, too."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._stop.listen(trainer)
        elif self._tried != self._step:
            self.save(trainer)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """End; all that was trained is saved."""
        if self._stop.anywhere():
            raise self._stop.end()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Remember that this step is validated."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._validated = trainer.global_step

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last step.

        Raises:
            SavingError: it cannot be written.
        """
        if self._saved != self._step and not self.save(trainer):
            raise SavingError(f"{self._failure(trainer)}; free some, and start the same command again")

    def state_dict(self) -> dict[str, Any]:
        """Which step was validated last, and whether the one that is saved has to be."""
        return {"validated": self._validated, "validates": self._validates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._validated, self._validates = state_dict["validated"], state_dict["validates"]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The place in training, for other ranks."""
        translate(trainer, checkpoint)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The place in training at the end of the last step, not in the middle of the next."""
        checkpoint["loops"] = self._loops or checkpoint["loops"]

    # What it does

    def save(self, trainer: lightning.Trainer) -> bool:
        """Write the checkpoint of the last step; whether it succeeded, the same on all ranks."""
        self._tried = self._step
        for logger in trainer.loggers:
            logger.save()  # else a run that is killed would lose what it logged before this step
        path = self.folder / f"step_{self._step}.ckpt"
        partial = path.with_name(f".{path.name}.partial")
        if not self._went_well(trainer, self._write(trainer, partial), partial):
            return False
        if not self._went_well(trainer, _publish(trainer, partial, path), partial):
            return False
        if trainer.is_global_zero:
            _prune(self.folder, self.keep)
        self._saved = self._step
        return True

    def _went_well(self, trainer: lightning.Trainer, error: Exception | None, partial: Path) -> bool:
        """Whether no rank has an error; else it is said, and what was begun is taken away."""
        if trainer.strategy.reduce_boolean_decision(error is None):
            return True
        if trainer.is_global_zero:
            _remove(partial)
            _log.error("%s: %s; training goes on", self._failure(trainer), error or "see the other ranks")
        return False

    def _write(self, trainer: lightning.Trainer, partial: Path) -> Exception | None:
        if trainer.is_global_zero and partial.is_dir():
            _remove(partial)
        self._io.error = None
        try:
            trainer.save_checkpoint(partial, weights_only=False)
        except (OSError, RuntimeError) as error:
            return error
        except CheckpointException as error:  # of distributed checkpoints; no Exception itself
            return RuntimeError(str(error))
        return self._io.error

    def _failure(self, trainer: lightning.Trainer) -> str:
        free = shutil.disk_usage(self.folder).free / 2**20 if self.folder.exists() else 0.0
        last = f"the last one is of step {self._saved}" if self._saved else "there is none yet"
        where = f"{self.folder} ({free:.0f} MiB free, {last})"
        return f"the checkpoint of step {self._step} cannot be written to {where}"

    def _end(self, trainer: lightning.Trainer) -> None:
        done = self._saved == self._step or self.save(trainer)
        if trainer.is_global_zero and done:
            _log.info("asked to end at step %d: the same command goes on from there", self._step)
        if not done:
            raise SavingError(self._failure(trainer))
        trainer.strategy.barrier("ended")
        raise self._stop.end()


def _loops(trainer: lightning.Trainer) -> dict[str, Any]:
    """The place in training, as Lightning keeps it in checkpoints, within an epoch that has begun.

    Lightning does not count an epoch as begun that follows a resumption at the end of another. Stopped at its
    end again, it would lose count of it.
    """
    loops = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
    for progress in loops["fit_loop"]["epoch_progress"].values():
        done = progress["processed"]
        progress |= {"ready": done + 1, "started": done + 1, "completed": done}
    return loops


def _validates_now(trainer: lightning.Trainer) -> bool:
    """Whether Lightning, which counts batches, validates after this one."""
    every = trainer.val_check_batch
    if not isinstance(every, int) or trainer.check_val_every_n_epoch is not None:
        return False
    return trainer.enable_validation and (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0


def _validate(trainer: lightning.Trainer) -> None:
    """The validation that was due when the run was stopped: Lightning would take it for done."""
    trainer.validating = True
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # else it would go on with the batches of the validation before
    loop.run()
    trainer.training = True


def _publish(trainer: lightning.Trainer, partial: Path, path: Path) -> OSError | None:
    """Give a whole checkpoint its name, and let ``last.ckpt`` be it; on rank 0, which learns why not."""
    if not trainer.is_global_zero:
        return None
    try:
        if partial.is_dir():
            _remove(path)
        partial.replace(path)
        _link(path)
        _flush(path.parent)
    except OSError as error:
        return error
    return None


def _link(path: Path) -> None:
    link = path.with_name(f".{LAST}.partial")
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(path.name)
        if (path.parent / LAST).is_dir() and not (path.parent / LAST).is_symlink():
            _remove(path.parent / LAST)
        link.replace(path.parent / LAST)
    except OSError:  # a file system without links: the newest file is the last
        _remove(path.parent / LAST)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, keep: int) -> None:
    for path in saved_checkpoints(folder)[keep:]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
