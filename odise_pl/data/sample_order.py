"""The order of samples: which rank and worker reads which sample when, computed from the sizes of the shards.

Training is an endless series of passes over the data. Each pass shuffles the shards and the samples of each
shard, and cuts the result into consecutive pieces: for ranks, then for the loader workers of a rank, then for
the batches of a worker. So a pass never repeats a sample, for any number of shards, ranks and workers.

A piece is read in tar order and shuffled in a buffer. This order is known beforehand, so reading can start at
any batch without opening the shards before it. It depends only on the seed, the epoch, the rank, and the
numbers of ranks and workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from odise_pl.data.records import DataError

Indices = NDArray[np.int64]
# Keep the random streams of shards, of a shard's samples, and of the buffer apart.
_SHARDS, _SAMPLES, _BUFFER = 0, 1, 2


@dataclass(frozen=True)
class Piece:
    """What one worker reads.

    Attributes:
        shards: shard of each sample, in reading order; samples of a shard follow one another.
        indices: place of each sample in its shard; rises within a shard.
        order: positions in the two arrays above, in order of use.
    """

    shards: Indices
    indices: Indices
    order: Indices

    def __len__(self) -> int:
        return len(self.order)


def limit_sizes(sizes: Sequence[int], limit: int | None) -> tuple[int, ...]:
    """Samples per shard if only the first ``limit`` samples of the set are used; None uses all."""
    if limit is None:
        return tuple(sizes)
    starts = np.cumsum([0, *sizes[:-1]])
    return tuple(max(0, min(size, limit - start)) for size, start in zip(sizes, starts.tolist(), strict=True))


@dataclass(frozen=True)
class TrainPlan:
    """The order of training samples.

    Attributes:
        sizes: samples per shard.
        batch_size: images per batch of a rank.
        world_size: number of ranks.
        seed: random seed.
        buffer: size of the shuffle buffer in samples; 0 or 1 keeps tar order.
        epoch_length: samples of an epoch over all ranks, rounded down to whole batches on all ranks. An epoch
            may be longer or shorter than a pass; every sample is used before any is repeated. None: one pass,
            without the last samples that do not fill a batch on every rank; they differ between passes.

    Raises:
        DataError: an epoch would hold no batch.
    """

    sizes: tuple[int, ...]
    batch_size: int
    world_size: int = 1
    seed: int = 0
    buffer: int = 512
    epoch_length: int | None = None

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise DataError(
                f"{sum(self.sizes)} samples with data.epoch_length={self.epoch_length} give no batch of "
                f"{self.batch_size} images on each of {self.world_size} ranks; "
                "raise data.epoch_length or lower data.batch_size"
            )

    @property
    def batches(self) -> int:
        """Batches per epoch, the same on every rank."""
        length = self.epoch_length if self.epoch_length is not None else sum(self.sizes)
        return length // (self.batch_size * self.world_size) if sum(self.sizes) else 0

    def piece(self, epoch: int, rank: int, worker: int, workers: int) -> Piece:
        """What a worker reads in an epoch: batches ``worker``, ``worker + workers``, ... of its rank."""
        own = [len(range(w, self.batches, workers)) * self.batch_size for w in range(worker + 1)]
        start = (epoch * self.world_size + rank) * self.batches * self.batch_size + sum(own[:-1])
        return _concatenate([self._part(*bounds) for bounds in self._passes(start, start + own[-1])])

    @property
    def _pass_length(self) -> int:
        if self.epoch_length is None:
            return self.batches * self.batch_size * self.world_size
        return sum(self.sizes)

    def _passes(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut a stretch of the endless series at the ends of passes: (pass, start, stop within the pass)."""
        length = self._pass_length
        while start < stop:
            number, first = divmod(start, length)
            last = min(length, first + stop - start)
            yield number, first, last
            start += last - first

    def _part(self, number: int, start: int, stop: int) -> Piece:
        """Samples ``start`` to ``stop`` of a pass."""
        shards, indices = [], []
        begin = 0
        for shard in self._random(_SHARDS, number).permutation(len(self.sizes)):
            low, high = max(start - begin, 0), min(stop - begin, self.sizes[shard])
            begin += self.sizes[shard]
            if low < high:
                dealt = self._random(_SAMPLES, number, int(shard)).permutation(self.sizes[shard])[low:high]
                indices.append(np.sort(dealt))
                shards.append(np.full(high - low, shard))
        order = buffered_order(stop - start, self.buffer, self._random(_BUFFER, number, start))
        return Piece(np.concatenate(shards), np.concatenate(indices), order)

    def _random(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *keys])


@dataclass(frozen=True)
class EvalPlan:
    """Every sample exactly once, in order, in batches that do not depend on ranks and workers.

    The set is cut into batches, and ranks and their workers get nearly equal consecutive pieces of these. An
    image is always in the same batch, so predictions do not depend on the number of ranks.

    Attributes:
        sizes: samples per shard.
        batch_size: images per batch; the last batch of the set may be smaller.
        world_size: number of ranks; their numbers of batches differ by at most one.
        done: numbers of batches to skip.
    """

    sizes: tuple[int, ...]
    batch_size: int = 1
    world_size: int = 1
    done: frozenset[int] = frozenset()

    @property
    def total(self) -> int:
        """Batches of the whole set, skipped ones included."""
        return -(-sum(self.sizes) // self.batch_size)

    def length(self, number: int) -> int:
        """Samples of batch ``number``."""
        return min(self.batch_size, sum(self.sizes) - number * self.batch_size)

    def batches(self, rank: int) -> int:
        """Batches of a rank; its workers share them."""
        return len(self.numbers(rank, 0, 1))

    def numbers(self, rank: int, worker: int, workers: int) -> tuple[int, ...]:
        """Numbers of the batches that ``worker`` of ``rank`` makes."""
        left = [number for number in range(self.total) if number not in self.done]
        place, parts = rank * workers + worker, self.world_size * workers
        return tuple(left[len(left) * place // parts : len(left) * (place + 1) // parts])

    def piece(self, rank: int, worker: int, workers: int) -> Piece:
        """What ``worker`` of ``rank`` reads."""
        first = np.array(self.numbers(rank, worker, workers), dtype=np.int64) * self.batch_size
        chosen = (first[:, None] + np.arange(self.batch_size)).ravel()
        chosen = chosen[chosen < sum(self.sizes)]
        ends = np.cumsum(self.sizes)
        shards = np.searchsorted(ends, chosen, side="right")
        indices = chosen - (ends - np.asarray(self.sizes))[shards]
        return Piece(shards, indices, np.arange(len(chosen)))


def buffered_order(length: int, buffer: int, random: np.random.Generator) -> Indices:
    """The order in which a shuffle buffer of this size yields a sequence.

    At most ``buffer`` samples are read ahead: ``order[i] < i + buffer``.
    """
    if buffer <= 1:
        return np.arange(length)
    if length <= buffer:
        return random.permutation(length)
    held = list(range(buffer))
    order = np.empty(length, dtype=np.int64)
    for i, slot in enumerate(random.integers(buffer, size=length - buffer)):
        order[i] = held[slot]
        held[slot] = buffer + i
    order[length - buffer :] = random.permutation(held)
    return order


def _concatenate(parts: Sequence[Piece]) -> Piece:
    empty = np.empty(0, dtype=np.int64)
    starts = np.cumsum([0, *map(len, parts)])
    orders = [part.order + start for part, start in zip(parts, starts, strict=False)]
    return Piece(
        np.concatenate([empty, *(part.shards for part in parts)]),
        np.concatenate([empty, *(part.indices for part in parts)]),
        np.concatenate([empty, *orders]),
    )
