"""What ranks that share weights have to agree on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class Alone:
    """A rank that holds all weights itself and need not ask anybody.

    Where weights are sharded, every rank has a part of each block, and all have to run every block together.
    What then may differ from rank to rank (windows of an image, texts that were seen before, images of an
    evaluation) goes through the methods below, which all ranks call equally often.
    """

    shared = False  # whether other ranks wait for this one

    def longest(self, count: int) -> int:
        """The largest ``count`` of all ranks."""
        return count

    def union(self, texts: Sequence[str]) -> list[str]:
        """The texts of all ranks, each once, in the same order everywhere."""
        return list(texts)

    def gather(self, block: nn.Module) -> None:
        """Make a block's weights whole until its forward has run; for use of them beside its forward."""
