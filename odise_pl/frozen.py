"""Modules that are used and never trained."""

from __future__ import annotations

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
