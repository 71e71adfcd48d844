"""What collectives carry: bytes by kind, counted as they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Which field of Traffic an operation adds to, and which of its arguments holds the whole message.
_OPERATIONS = {
    "allgather_": ("gathered", 0),
    "_allgather_base_": ("gathered", 0),
    "reduce_scatter_": ("scattered", 1),
    "_reduce_scatter_base_": ("scattered", 1),
    "allreduce_": ("reduced", 0),
    "broadcast_": ("broadcast", 0),
}


@dataclass(frozen=True)
class Traffic:
    """Bytes that the collectives of one rank carry.

    Attributes:
        gathered: all-gathered, the whole result.
        scattered: reduce-scattered, the whole input.
        reduced: all-reduced.
        broadcast: sent from one rank to all.
    """

    gathered: float = 0
    scattered: float = 0
    reduced: float = 0
    broadcast: float = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, number: int) -> Traffic:
        """As often as that."""
        return Traffic(*(number * value for value in astuple(self)))


class Collectives(TorchDispatchMode):
    """Notes the collectives that are called while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = Traffic()

    def take(self) -> Traffic:
        """What was carried since the last call."""
        seen, self._seen = self._seen, Traffic()
        return seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind, place = _OPERATIONS.get(func._schema.name.partition("::")[2], ("", 0))
            if kind:
                self._seen += Traffic(**{kind: _bytes(tree_leaves(args[place]))})
        return func(*args, **(kwargs or {}))


def _bytes(leaves: Sequence[Any]) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
