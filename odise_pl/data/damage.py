"""What becomes of samples that cannot be read: a report, and in training another sample in their place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from odise_pl.data.decoding import DecodedSample, decode
from odise_pl.data.reading import Damage, Item, RawSample, read_shard
from odise_pl.data.records import DataError

_RESERVE_SIZE = 64


class Reports:
    """Decodes items; keeps what was damaged, each thing once, and how many samples, for the next batch.

    Args:
        isthing: see :func:`decode`.
    """

    def __init__(self, isthing: Sequence[bool] | None = None) -> None:
        self._isthing = isthing
        self._told: set[str] = set()
        self._new: list[str] = []
        self._left_out = 0

    def decoded(self, item: Item) -> DecodedSample | None:
        """The decoded item, or None if it is damaged."""
        if isinstance(item, Damage):
            self.report(item.text)
            return None
        try:
            return decode(item, self._isthing)
        except DataError as error:
            self.report(str(error))
            return None

    def take(self) -> tuple[tuple[str, ...], int]:
        """What was damaged since the last call, and how many samples were left out for it."""
        new, count = tuple(self._new), self._left_out
        self._new, self._left_out = [], 0
        return new, count

    def report(self, text: str) -> None:
        """Say why a sample is left out; a damaged shard says so for each of its samples."""
        self._left_out += 1
        if text not in self._told:
            self._told.add(text)
            self._new.append(text)


class Reserve:
    """Samples of one shard, read when the first substitute is needed.

    Which shard and which of its samples depends on ``random`` alone, so a resumed run draws the same ones.

    Args:
        urls: the shards.
        sizes: samples per shard.
        random: decides about the reserve.
        isthing: see :func:`decode`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        sizes: Sequence[int],
        random: np.random.Generator,
        isthing: Sequence[bool] | None = None,
    ) -> None:
        self._urls, self._sizes, self._random, self._isthing = urls, sizes, random, isthing
        self._samples: list[RawSample] = []

    def draw(self, random: np.random.Generator) -> DecodedSample:
        """A sample of the reserve.

        Raises:
            DataError: no shard of the set holds a sample that can be read.
        """
        self._samples = self._samples or self._read()
        return decode(self._samples[random.integers(len(self._samples))])

    def _read(self) -> list[RawSample]:
        reports = Reports(self._isthing)
        for shard in self._random.permutation(np.flatnonzero(self._sizes)):
            chosen = self._random.permutation(self._sizes[shard])[:_RESERVE_SIZE]
            items = read_shard(self._urls[shard], np.sort(chosen).tolist())
            good = [item for item in items if reports.decoded(item) and isinstance(item, RawSample)]
            if good:
                return good
        raise DataError(f"no sample of {len(self._urls)} shards can be read: {reports.take()[0][0]}")
