"""train.py, in which something goes wrong: ``FAULTS="KIND:RANK:BATCH ..."``; batches are counted from 0."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

from odise_pl.data.records import DataError
from odise_pl.structures import Batch
from odise_pl.training.module import OdiseModule
from odise_pl.training.run import main

healthy = OdiseModule.training_step


def faulty(self: OdiseModule, batch: Batch, batch_idx: int) -> Any:
    for fault in os.environ["FAULTS"].split():
        kind, rank, number = fault.split(":")
        if int(rank) == self.global_rank and int(number) == self.trainer.fit_loop.total_batch_idx:
            batch = FAULTS[kind](batch)
    return healthy(self, batch, batch_idx)


def die(batch: Batch) -> Batch:
    os.kill(os.getpid(), signal.SIGKILL)
    return batch


def die_first(batch: Batch) -> Batch:
    """Not again when torchrun has started it again."""
    return die(batch) if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else batch


def fail(batch: Batch) -> Batch:
    raise DataError("shard 7 is gone")


def not_a_number(batch: Batch) -> Batch:
    return replace(batch, pixels=batch.images * float("nan"))


FAULTS = {"die": die, "die_first": die_first, "fail": fail, "nan": not_a_number}

if __name__ == "__main__":
    OdiseModule.training_step = faulty  # type: ignore[method-assign]
    main()
