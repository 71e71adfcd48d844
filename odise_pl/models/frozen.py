"""Modules that are used and never trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Frozen(nn.Module):
    """Nothing trains, always in eval mode."""

    def freeze(self) -> None:
        """To be called at the end of a constructor."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Frozen: stays in eval mode whatever is asked."""
        return super().train(False)


def own(parameters: Iterable[nn.Parameter], dtype: torch.dtype = torch.float32) -> None:
    """Give parameters memory of their own, one after the other.

    Where tensors lie in a mapped file decides how kernels round; and what reads a file that changes, crashes.
    """
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype, copy=True)
