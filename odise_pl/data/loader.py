"""Loaders: a DataLoader around a stream, and the place in the series of training batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader, IterableDataset

from odise_pl.data.collate import collate
from odise_pl.data.records import DataError
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.structures import Batch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are made.

    Attributes:
        num_workers: processes beside the training process; 0: the training process itself.
        prefetch_factor: batches that each of them keeps ready.
        pin_memory: put batches into page-locked memory; None: if there is a GPU.
        timeout: seconds after which a batch that does not come is an error; needs processes of their own.
        slow: seconds after which a batch that has come is worth a remark.
    """

    num_workers: int = 4
    prefetch_factor: int = 2
    pin_memory: bool | None = None
    timeout: float = 600
    slow: float = 30

    @property
    def workers(self) -> int:
        """Into how many parts a rank's samples are split."""
        return max(self.num_workers, 1)

    def batches(self, stream: IterableDataset[Batch]) -> Iterator[Batch]:
        """Run a stream; its workers end with the iterator.

        Raises:
            DataError: while iterating: a worker was killed, or a batch did not come in time.
        """
        pin = torch.cuda.is_available() if self.pin_memory is None else self.pin_memory
        batches = iter(
            DataLoader(
                stream,
                batch_size=None,  # streams make whole batches
                num_workers=self.num_workers,
                prefetch_factor=self.prefetch_factor if self.num_workers else None,
                pin_memory=pin,
                timeout=self.timeout if self.num_workers else 0,
                generator=torch.Generator(),  # else every epoch would draw from the global random state
            )
        )
        return self._watched(batches)

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            since = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except DataError as error:
                raise DataError(_own_words(error)) from error
            except RuntimeError as error:
                raise self._clear(error) from error
            waited = time.monotonic() - since
            if waited > self.slow:
                _log.warning("waited %.0f s for images %s", waited, ", ".join(batch.keys))
            yield batch

    def _clear(self, error: RuntimeError) -> RuntimeError:
        """A remark of PyTorch about its workers in our words."""
        text = str(error)
        if "timed out" in text:
            return _LoaderError(
                f"no batch has come for {self.timeout:g} s: a disk or server that holds the shards does not "
                f"answer; start the same command again when it does, or with a longer data.timeout"
            )
        if "DataLoader worker" in text:
            return _LoaderError(
                f"a loader process was killed ({text.strip()}), as systems do that run out of memory: lower "
                f"data.num_workers, data.prefetch_factor or data.shuffle_buffer; the same command goes on"
            )
        return error


def _own_words(error: DataError) -> str:
    """The message of an error; PyTorch puts the traceback of the loader process before it."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


class _LoaderError(DataError, RuntimeError):
    """A loader process failed."""


@dataclass
class DamageLog:
    """Warns of each damaged shard or sample once."""

    told: set[str] = field(default_factory=set)

    def report(self, batch: Batch) -> None:
        for text in batch.skipped:
            if text not in self.told:
                self.told.add(text)
                _log.warning("left out: %s", text)


class TrainLoader:
    """The training batches of a rank, epoch after epoch.

    Each iteration goes from the current place to the end of its epoch, and the place is asked for when the
    first batch is wanted. So a resumed run continues with the batch after the last one it finished.

    Args:
        make: the stream of an epoch from a batch on.
        batches: batches per epoch.
        options: how batches are made.
        place: how many batches were used since the start of training, over all epochs; None: as many as this
            loader has given.
        damage: where damage is reported.
    """

    def __init__(
        self,
        make: Callable[[int, int], TrainStream],
        batches: int,
        options: LoaderOptions,
        place: Callable[[], int] | None = None,
        damage: DamageLog | None = None,
    ) -> None:
        self._make, self._batches, self._options = make, batches, options
        self._place = place
        self._damage = damage or DamageLog()
        self.used = 0

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the place."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        if self._place is not None:
            self.used = self._place()
        for batch in self._options.batches(self._make(*divmod(self.used, self._batches))):
            self._damage.report(batch)
            self.used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches used since the start of training."""
        return {"used": self.used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after as many batches."""
        self.used = state["used"]


class EvalLoader:
    """Every sample of a rank once.

    Args:
        stream: the samples.
        batches: how many batches the stream makes if nothing is damaged.
        options: how batches are made.
        damage: where damage is reported.
        complete: these are all samples of the set, so at least one must be readable.
        length: batches of the rank that has most; those that this rank lacks come as batches without images
            and number -1, so that all ranks take equally many steps.
    """

    def __init__(
        self,
        stream: EvalStream,
        batches: int,
        options: LoaderOptions,
        damage: DamageLog | None = None,
        complete: bool = True,
        length: int = 0,
    ) -> None:
        self._length = max(length, batches)
        self._stream, self._batches, self._options = stream, batches, options
        self._complete = complete
        self._damage = damage or DamageLog()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        made = 0
        for batch in self._options.batches(self._stream):
            made += len(batch)
            self._damage.report(batch)
            yield batch
        if self._complete and self._batches and not made:
            raise DataError(f"no sample can be read: {self._stream.urls[0]} and the other shards are damaged")
        for _ in range(self._length - self._batches):
            yield collate([])
