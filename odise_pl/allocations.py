"""How many bytes live tensors hold: of real ones, and of fake ones that have no data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

OTHER = "other"


@dataclass
class _Storage:
    nbytes: int
    kind: str
    alive: weakref.ref[torch.UntypedStorage]


class Allocations(TorchDispatchMode):
    """Counts what operations allocate from the time it is entered until no tensor uses it any more.

    What a kernel needs only while it runs is not seen. Tensors of older date count once :meth:`label` has
    named them.

    Attributes:
        kind: of what is allocated from now on.
        held: bytes now, by kind.
        at_peak: bytes by kind when their sum was largest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, int] = {}
        self.at_peak: dict[str, int] = {}
        self._storages: dict[int, _Storage] = {}
        self.kind, self._now, self._peak = OTHER, 0, 0

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return self._peak

    def reset_peak(self) -> None:
        """Begin anew to look for the peak, at what is held now."""
        self._peak, self.at_peak = self._now, dict(self.held)

    def label(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say of tensors of what kind they are."""
        for tensor in tensors:
            for plain in _plain(tensor):
                self._note(plain)
                storage = self._storages[id(plain.untyped_storage())]
                self._add(storage.kind, -storage.nbytes)
                storage.kind = kind
                self._add(kind, storage.nbytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # of a tensor that wraps others, these pass by here themselves
            if isinstance(leaf, Tensor) and not is_traceable_wrapper_subclass(leaf):
                self._note(leaf)
        return result

    def __enter__(self) -> Allocations:
        self._resize = torch.UntypedStorage.resize_
        # resizing, by which fully_shard frees weights, is no operation
        torch.UntypedStorage.resize_ = self._resizing()  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def _resizing(self) -> Any:
        def resize_(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            result = self._resize(storage, size)
            known = self._storages.get(id(storage))
            if known is not None:
                change, known.nbytes = size - known.nbytes, size
                self._add(known.kind, change)
            return result

        return resize_

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # one object for as long as the storage lives
        if key not in self._storages:
            reference = weakref.ref(storage, lambda _: self._forget(key))
            self._storages[key] = _Storage(storage.nbytes(), self.kind, reference)
            self._add(self.kind, storage.nbytes())

    def _forget(self, key: int) -> None:
        gone = self._storages.pop(key)
        self._add(gone.kind, -gone.nbytes)

    def _add(self, kind: str, nbytes: int) -> None:
        self.held[kind] = self.held.get(kind, 0) + nbytes
        self._now += nbytes
        if self._now > self._peak:
            self.reset_peak()


def _plain(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the data of one."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    parts = [getattr(tensor, name) for name in names]
    return [plain for part in parts if isinstance(part, Tensor) for plain in _plain(part)]


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What this process holds of tensors that share no memory."""
    return sum(t.numel() * t.element_size() for tensor in tensors for t in _plain(tensor))
