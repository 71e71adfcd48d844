"""Loaders: a DataLoader around a stream, and the position in the series of training batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader, IterableDataset

from odise_pl.data.collate import collate
from odise_pl.data.records import DataError
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.structures import Batch

_log = logging.getLogger(__name__)


@dataclass
class BatchSource:
    """Runs streams in loader processes and warns of each damaged shard or sample once.

    Attributes:
        num_workers: processes beside the training process; 0: the training process itself.
        timeout: seconds after which a missing batch is an error; needs at least one worker.
    """

    num_workers: int = 4
    timeout: float = 600
    _reported: set[str] = field(default_factory=set, init=False)

    @property
    def workers(self) -> int:
        """Into how many parts a rank's samples are split."""
        return max(self.num_workers, 1)

    def batches(self, stream: IterableDataset[Batch]) -> Iterator[Batch]:
        """The batches of a stream; its workers end with the iterator.

        Raises:
            DataError: while iterating: a worker was killed, or a batch did not come in time.
        """
        loader = DataLoader(
            stream,
            batch_size=None,  # streams make whole batches
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            timeout=self.timeout if self.num_workers else 0,
            generator=torch.Generator(),  # else every epoch would draw from the global random state
        )
        try:
            for batch in loader:
                self._report(batch.skipped)
                yield batch
        except DataError as error:  # PyTorch puts the traceback of the worker before the message
            raise DataError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except RuntimeError as error:
            raise self._explained(error) from error

    def _report(self, skipped: Iterable[str]) -> None:
        for text in skipped:
            if text not in self._reported:
                self._reported.add(text)
                _log.warning("skipped: %s", text)

    def _explained(self, error: RuntimeError) -> Exception:
        """What PyTorch says of its workers, with the way out."""
        text = str(error)
        if "timed out" in text:
            return DataError(
                f"no batch for {self.timeout:g} s: a disk or server that holds the shards does not answer; "
                "resume when it does, or with a longer data.timeout"
            )
        if "DataLoader worker" in text:
            return DataError(
                f"a loader process was killed ({text.strip()}), as systems do that run out of memory: resume "
                "with fewer data.num_workers or a smaller data.shuffle_buffer"
            )
        return error


class TrainLoader:
    """The training batches of a rank, epoch after epoch.

    Each iteration runs from the current position to the end of its epoch. The position is asked for when the
    first batch is wanted, so a resumed run continues with the batch after the last finished one.

    Args:
        make: the stream of an epoch from a batch on.
        batches: batches per epoch.
        source: runs the streams.
        position: how many batches were used since the start of training, over all epochs; None: as many as
            this loader has given.
    """

    def __init__(
        self,
        make: Callable[[int, int], TrainStream],
        batches: int,
        source: BatchSource,
        position: Callable[[], int] | None = None,
    ) -> None:
        self._make, self._batches, self._source, self._position = make, batches, source, position
        self.used = 0

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the position."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        if self._position is not None:
            self.used = self._position()
        for batch in self._source.batches(self._make(*divmod(self.used, self._batches))):
            self.used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches used since the start of training. Lightning warns of loaders without a state."""
        return {"used": self.used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after as many batches."""
        self.used = state["used"]


class EvalLoader:
    """Every sample of a rank once.

    All ranks take equally many steps, one at least: one that has fewer batches appends batches without images
    and number -1. Lightning takes an evaluation without any batch for none, and would ask for no result.
    """

    def __init__(self, stream: EvalStream, source: BatchSource) -> None:
        self._stream, self._source = stream, source
        plan, workers = stream.plan, source.workers
        self._batches = plan.batches(stream.rank, workers)
        self._length = max(1, *(plan.batches(rank, workers) for rank in range(plan.world_size)))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        made = 0
        for batch in self._source.batches(self._stream):
            made += len(batch)
            yield batch
        whole_set = self._stream.plan.world_size == 1 and not self._stream.plan.done
        if whole_set and self._batches and not made:
            raise DataError(f"no sample can be read: {self._stream.urls[0]} and the other shards are damaged")
        for _ in range(self._length - self._batches):
            yield collate([])
