"""The position in training for another number of images per batch: other ranks, or another batch size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning

from odise_pl.data.datamodule import PanopticDataModule

_log = logging.getLogger(__name__)


def convert_position(trainer: lightning.Trainer, checkpoint: dict[str, Any]) -> None:
    """Convert the position in a checkpoint, in place, from batches of that run to batches of this one.

    Epoch, optimiser steps, schedule and the number of images used in the epoch stay. A step always ends with
    a whole number of batches, so the next batch is a whole one, too.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    before = checkpoint.get(PanopticDataModule.__name__)
    if not isinstance(data, PanopticDataModule) or not before:
        return
    old, new = _images(before), _images(data.state_dict())
    if old == new:
        return
    loop = checkpoint["loops"]["fit_loop"]
    progress, batches = loop["epoch_loop.batch_progress"], data.train_plan().batches
    used = progress["current"]["ready"] * old
    current = min(max(used // new, 1), batches)
    epoch = loop["epoch_progress"]["current"]["processed"]
    for name, count in (("current", current), ("total", epoch * batches + current)):
        behind = progress[name]["ready"] - progress[name]["completed"]
        progress[name] |= {"ready": count, "started": count, "processed": count, "completed": count - behind}
    if trainer.is_global_zero:
        _log.warning(
            "%d images per batch instead of %d: a step is %d batches now, the global batch stays; epoch %d "
            "resumes after %d images, some of which may repeat and others be missing in it",
            new, old, trainer.accumulate_grad_batches, epoch, used,
        )  # fmt: skip


def _images(state: Mapping[str, Any]) -> int:
    """Images of a batch on all devices together."""
    return int(state["batch_size"]) * int(state["devices"])
