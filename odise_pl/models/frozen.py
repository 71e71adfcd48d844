"""Modules that are never trained."""

from __future__ import annotations

from collections.abc import Iterable

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
