"""Loaders: DataLoaders around streams, and the position in training."""

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
        num_workers: loader processes; 0 loads in the training process.
        timeout: seconds to wait for a batch; needs at least one worker.
    """

    num_workers: int = 4
    timeout: float = 600
    _reported: set[str] = field(default_factory=set, init=False)

    @property
    def workers(self) -> int:
        """Number of parts that a rank's samples are split into."""
        return max(self.num_workers, 1)

    def batches(self, stream: IterableDataset[Batch], expected: int) -> Iterator[Batch]:
        """The batches of a stream; its workers end with the iterator.

        Args:
            stream: makes the batches.
            expected: how many.

        Raises:
            DataError: while iterating, if a worker was killed, or a batch timed out or was lost.
        """
        loader = DataLoader(
            stream,
            batch_size=None,  # streams make whole batches
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            timeout=self.timeout if self.num_workers else 0,
            generator=torch.Generator(),  # otherwise every epoch changes the global random state
        )
        try:
            for batch in loader:
                self._report(batch.skipped)
                expected -= 1
                yield batch
        except DataError as error:  # PyTorch puts the traceback of the worker before the message
            raise DataError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except RuntimeError as error:
            raise self._explain(error) from error
        if expected > 0:  # PyTorch only prints that a batch could not be handed over, and continues
            raise DataError(
                f"loader processes lost {expected} batches, for the reason printed above; enlarge /dev/shm "
                "or set data.num_workers=0, and run the command again to resume"
            )

    def _report(self, skipped: Iterable[str]) -> None:
        for text in skipped:
            if text not in self._reported:
                self._reported.add(text)
                _log.warning("skipped: %s", text)

    def _explain(self, error: RuntimeError) -> Exception:
        """A clear error for failures of loader workers."""
        text = str(error)
        if "timed out" in text:
            return DataError(
                f"no batch for {self.timeout:g} s: the disk or server that holds the shards does not respond "
                "or /dev/shm is full; resume when that is mended, or raise data.timeout"
            )
        if "DataLoader worker" in text:
            return DataError(
                f"a loader process was killed ({text.strip()}), probably out of memory; resume with fewer "
                "data.num_workers or a smaller data.shuffle_buffer"
            )
        return error


class TrainLoader:
    """The training batches of a rank, epoch after epoch.

    Each iteration runs from the current position to the end of its epoch. The position is read when iteration
    starts, so a resumed run continues after the last finished batch.

    Args:
        make: makes the stream of an epoch, starting at a batch.
        batches: batches per epoch.
        source: runs the streams.
        position: number of batches used since the start of training; None counts those of this loader.
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
        """Batches of a whole epoch."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        if self._position is not None:
            self.used = self._position()
        epoch, done = divmod(self.used, self._batches)
        for batch in self._source.batches(self._make(epoch, done), self._batches - done):
            self.used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches used since the start of training; Lightning warns about loaders without state."""
        return {"used": self.used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after this number of batches."""
        self.used = state["used"]


class EvalLoader:
    """Every sample of a rank once.

    All ranks take the same number of steps, at least one: ranks with fewer batches append batches without
    images, with number -1. Lightning would skip an evaluation without batches, and its result.
    """

    def __init__(self, stream: EvalStream, source: BatchSource) -> None:
        self._stream, self._source = stream, source
        plan = stream.plan
        self._batches = plan.batches(stream.rank)
        self._length = max(1, *(plan.batches(rank) for rank in range(plan.world_size)))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        made = 0
        for batch in self._source.batches(self._stream, self._batches):
            made += len(batch)
            yield batch
        whole_set = self._stream.plan.world_size == 1 and not self._stream.plan.done
        if whole_set and self._batches and not made:
            raise DataError(f"no sample can be read: {self._stream.urls[0]} and all other shards are damaged")
        for _ in range(self._length - self._batches):
            yield collate([])
