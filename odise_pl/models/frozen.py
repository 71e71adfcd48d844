"""Modules that are never trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn


class Frozen(nn.Module):
    """A module whose parameters never train and that stays in eval mode."""

    def freeze(self) -> None:
        """Disable gradients and training mode; call it at the end of a constructor."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode for any ``mode``."""
        return super().train(False)


def copy_to_memory(parameters: Iterable[nn.Parameter], dtype: torch.dtype = torch.float32) -> None:
    """Replace each parameter, which may be memory-mapped, by a copy in memory.

    Tensors in mapped files have addresses at which kernels round differently, and a process crashes if a
    mapped file changes.
    """
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype, copy=True)


def outermost(modules: Iterable[nn.Module], kinds: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    """The parts of these kinds, none of which lies within another."""
    for module in modules:
        if isinstance(module, kinds):
            yield module
        else:
            yield from outermost(module.children(), kinds)


def inner_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The residual blocks of a network of timm, which keeps them in lists of this name; ResNets have none."""
    for name, child in module.named_children():
        if name != "blocks":
            yield from inner_blocks(child)
            continue
        for block in child.children():
            yield from block if isinstance(block, nn.ModuleList) else (block,)
