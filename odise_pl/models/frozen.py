"""Modules that are used and never trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Frozen(nn.Module):
    """A module whose parameters never train and that stays in eval mode."""

    def freeze(self) -> None:
        """Switch gradients and training mode off; called at the end of a constructor."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)


def copy_to_memory(parameters: Iterable[nn.Parameter], dtype: torch.dtype = torch.float32) -> None:
    """Replace the storage of each parameter, which may lie in a mapped file, by a copy in memory.

    A mapped file places tensors at addresses that change how kernels round, and a process that reads a mapped
    file crashes when the file changes.
    """
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype, copy=True)
