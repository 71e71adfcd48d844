"""Which settings fit into the memory of a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from odise_pl.autosize import SHARE, largest_batch
from odise_pl.plan.simulation import Case

GIB = 2**30
# What needs less memory and more time, step by step.
LADDER: tuple[dict[str, bool | int], ...] = (
    {},
    {"checkpoint_activations": True},
    {"checkpoint_activations": True, "window_batch": 1},
)
# Bytes that a case takes.
Cost = Callable[[Case], int]


@dataclass(frozen=True)
class Need:
    """Bytes of a step: so many at least, and so many more with every image of a forward pass."""

    fixed: float
    image: float

    def images(self, memory: float) -> int:
        """How many images at once fit into devices of ``memory`` GiB, see :func:`fits`."""
        return max(0, math.floor((SHARE * memory * GIB - self.fixed) / self.image))


def fits(nbytes: int, memory: float) -> bool:
    """Whether a step fits into ``memory`` GiB and leaves as much as :mod:`~odise_pl.autosize` does."""
    return nbytes <= SHARE * memory * GIB


def need(case: Case, cost: Cost) -> Need:
    """By the cost of one image and of two."""
    one, two = (cost(replace(case, batch=images)) for images in (1, 2))
    return Need(2 * one - two, two - one)


def rungs(case: Case) -> Iterator[Case]:
    """The case, and what needs less and less."""
    seen: list[Case] = []
    for change in LADDER:
        lower = replace(case, **change)  # type: ignore[arg-type]
        if lower not in seen:
            seen.append(lower)
            yield lower


def remedy(case: Case, images: int, memory: float, cost: Cost) -> Case | None:
    """The case with the fewest changes that fits; None: none does.

    Args:
        case: that does not fit.
        images: of an optimiser step on a device; the batch divides them.
        memory: of the device in GiB.
        cost: of a case.
    """
    for lower in rungs(case):
        most = min(need(lower, cost).images(memory), case.batch)
        if most:
            batch = largest_batch(images, most)
            return replace(lower, batch=batch, accumulate=images // batch)
    return None
