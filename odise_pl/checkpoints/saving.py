"""The checkpoints of a run: complete, written whole or not at all, also when a signal stops the run."""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from odise_pl.checkpoints.files import LAST, saved_checkpoints
from odise_pl.checkpoints.position import convert_position
from odise_pl.distributed.shutdown import Preempted, StopRequest
from odise_pl.errors import UserError, check_number
from odise_pl.files import atomic_write

_log = logging.getLogger(__name__)


class SavingError(UserError, OSError):
    """The last checkpoint of a run cannot be written, or its ranks resume from different ones."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes whole files, links ``last.ckpt`` to the newest, and deletes old ones.

    It runs on rank 0 alone, for which other ranks wait: an error is kept instead of raised.

    Args:
        keep: checkpoints that are kept.

    Attributes:
        error: why the last one was not written; empty if it was.
    """

    def __init__(self, keep: int) -> None:
        self.keep, self.error = keep, ""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint to ``path``; see :attr:`error`."""
        self.error = ""
        try:
            with atomic_write(Path(path)) as file:
                torch.save(checkpoint, file)
            link = Path(path).with_name(f".{LAST}")
            link.unlink(missing_ok=True)
            with suppress(OSError):  # a file system without links: the newest file is the last
                link.symlink_to(Path(path).name)
                link.replace(link.with_name(LAST))
            for old in saved_checkpoints(Path(path).parent)[self.keep :]:
                old.unlink()
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            self.error = str(error)


class Checkpoints(Checkpoint):
    """Saves all that resuming needs as ``step_N.ckpt``, and stops the run with a checkpoint after a signal.

    A checkpoint is always of the end of an optimiser step: while gradients accumulate, weights and optimiser
    do not change, so a signal takes effect at once, and a resumed run computes the unfinished step again. If
    one cannot be written, training continues and the next one is tried.

    Lightning's ``ModelCheckpoint`` saves at the end of a batch, before that batch is logged and validated.
    This class saves one batch later, and also on demand.

    Args:
        dirpath: the folder.
        every_n_train_steps: optimiser steps between checkpoints.
        keep: how many are kept; with one, there is none to fall back to if it is damaged.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 500, keep: int = 2) -> None:
        check_number("callbacks.checkpoint.every_n_train_steps", every_n_train_steps, 1)
        check_number("callbacks.checkpoint.keep", keep, 1)
        self.folder, self.every = Path(dirpath), every_n_train_steps
        self._io, self._stop = AtomicCheckpointIO(keep), StopRequest()
        self._step = self._saved = self._tried = self._validated = 0
        self._validates = False
        self._position: dict[str, Any] = {}

    # Lightning's hooks

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = self._io

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen to signals, and run the validation that the resumed run was stopped in."""
        self._stop.listen(trainer)
        self._step = self._saved = self._tried = trainer.global_step
        if trainer.strategy.broadcast(self._step) != self._step:
            raise SavingError(
                f"rank {trainer.global_rank} resumes from step {self._step}, rank 0 from another: its file "
                f"system is behind; start the run again"
            )
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob(".step_*"):
                partial.unlink()
        if self._step and self._validates and self._validated != self._step:
            _validate(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        """Remember the position at the end of a step; what it logs is not written yet."""
        if trainer.global_step != self._step:
            self._step, self._position = trainer.global_step, _position(trainer)
            self._validates = _validates_now(trainer)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save the step before this batch when it is time, or when a signal stops the run."""
        if self._tried != self._step and self._step % self.every == 0:
            self.save(trainer)
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save before validation takes its time; outside of training, only listen to signals."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._stop.listen(trainer)
        elif self._tried != self._step:
            self.save(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._validated = trainer.global_step

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last step, or raise SavingError."""
        if self._saved != self._step and (failure := self.save(trainer)):
            raise SavingError(f"{failure}; free some space, and start the run again")

    def state_dict(self) -> dict[str, Any]:
        """Which step was validated last, and whether the one that is saved has to be."""
        return {"validated": self._validated, "validates": self._validates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validated, self._validates = state_dict["validated"], state_dict["validates"]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        convert_position(trainer, checkpoint)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The position at the end of the last step, not in the middle of the next."""
        if self._position:
            checkpoint["loops"]["fit_loop"] = self._position

    # Saving and stopping

    def save(self, trainer: lightning.Trainer) -> str:
        """Write the checkpoint of the last step; why it failed, on all ranks, or nothing if it did not."""
        self._tried = self._step
        if getattr(trainer, "fast_dev_run", False):
            return ""
        for logger in trainer.loggers:
            logger.save()  # a run that is killed would lose what it logged before this step
        trainer.save_checkpoint(self.folder / f"step_{self._step}.ckpt")
        error = trainer.strategy.broadcast(self._io.error)
        if not error:
            self._saved = self._step
            return ""
        last = f"the last one is of step {self._saved}" if self._saved else "there is none yet"
        failure = f"the checkpoint of step {self._step} cannot be written to {self.folder} ({last}): {error}"
        if trainer.is_global_zero:
            _log.error("%s; training continues", failure)
        return failure

    def _stop_if_asked(self, trainer: lightning.Trainer) -> None:
        """Raise Preempted on all ranks, with all saved, if a signal arrived on any of them."""
        if not trainer.strategy.reduce_boolean_decision(self._stop.number is not None, all=False):
            return
        unsaved = trainer.state.fn == TrainerFn.FITTING and self._saved != self._step
        if unsaved and (failure := self.save(trainer)):
            raise SavingError(failure)
        if trainer.is_global_zero:
            _log.info("stopped at step %d; run the command again to resume", self._step)
        trainer.strategy.barrier("stopped")
        raise Preempted(self._stop.number or signal.SIGTERM)


def _position(trainer: lightning.Trainer) -> dict[str, Any]:
    """The position in training, as Lightning keeps it in checkpoints, within an epoch that has begun.

    Lightning does not count an epoch as begun that follows a resumption at the end of another. Stopped at its
    end again, it would lose count of it.
    """
    position = trainer.fit_loop.state_dict()
    for progress in position["epoch_progress"].values():
        done = progress["processed"]
        progress |= {"ready": done + 1, "started": done + 1, "completed": done}
    return position


def _validates_now(trainer: lightning.Trainer) -> bool:
    """Whether Lightning, which counts batches, validates after this one."""
    every = trainer.val_check_batch
    if not isinstance(every, int) or trainer.check_val_every_n_epoch is not None:
        return False
    return trainer.enable_validation and (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0


def _validate(trainer: lightning.Trainer) -> None:
    """The validation that was due when the run was stopped; Lightning would count it as done."""
    trainer.validating = True
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # else it would continue the validation before
    loop.run()
    trainer.training = True
