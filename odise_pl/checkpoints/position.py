"""The place in training for another number of images per batch: other ranks, or another batch size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning

from odise_pl.data.datamodule import PanopticDataModule

_log = logging.getLogger(__name__)
_COUNTERS = ("ready", "started", "processed")


def translate(trainer: lightning.Trainer, checkpoint: dict[str, Any]) -> None:
    """Count the batches of a checkpoint that was made with other batches in those of this run, in its place.

    Images that were used in the epoch, optimiser steps, schedule and epoch stay what they were. A step always
    ends with a whole number of batches, so the next one is a whole one, too.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    before = checkpoint.get(PanopticDataModule.__name__)
    if not isinstance(data, PanopticDataModule) or not before:
        return
    now = data.state_dict()
    old, new = _images(before), _images(now)
    if old == new:
        return
    loop = checkpoint["loops"]["fit_loop"]
    progress, batches = loop["epoch_loop.batch_progress"], data.train_plan().batches
    used = progress["current"]["ready"] * old
    current = min(max(used // new, 1), batches)
    epoch = loop["epoch_progress"]["current"]["processed"]
    for name, count in (("current", current), ("total", epoch * batches + current)):
        behind = progress[name]["ready"] - progress[name]["completed"]
        progress[name] |= {**dict.fromkeys(_COUNTERS, count), "completed": count - behind}
    if trainer.is_global_zero:
        _log.warning(
            "%d images per batch instead of %d: %d batches make a step now; steps, learning rate and global "
            "batch stay; epoch %d goes on after %d images, some of which may come again, others not in it",
            new,
            old,
            trainer.accumulate_grad_batches,
            epoch,
            used,
        )  # fmt: skip


def _images(state: Mapping[str, Any]) -> int:
    """Of a batch on all devices together."""
    return int(state["batch_size"]) * int(state["devices"])
