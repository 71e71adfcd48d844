"""Steps with non-finite gradients are skipped, on all ranks alike; many in a row end training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from odise_pl.losses.errors import DIVERGED, NonFiniteError

_log = logging.getLogger(__name__)
IN_A_ROW = 5
# Half precision searches for the scale of its gradients by skipping steps, from 65536 downwards.
IN_A_ROW_SCALED = 30


class StepSkipper:
    """Decides after the backward pass whether an optimiser step is skipped.

    The gradients are those of all ranks together, so every rank decides the same without asking.

    Attributes:
        skipped: steps skipped so far.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._in_a_row = 0
        self._reason = ""

    def non_finite_losses(self, error: NonFiniteError) -> list[Any]:
        """The losses of an error, whose step will have no finite gradients; remembers why."""
        self._reason = str(error).removesuffix(DIVERGED).rstrip("; ")
        return error.losses

    def state_dict(self) -> dict[str, int]:
        """Steps skipped so far, and how many of them in a row up to now."""
        return {"left_out": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """See :meth:`state_dict`; checkpoints of earlier versions have nothing of it."""
        self.skipped, self._in_a_row = state.get("left_out", 0), state.get("in_a_row", 0)

    def skip_if_nonfinite(self, norm: Tensor, parameters: Iterable[nn.Parameter], scaled: bool) -> None:
        """Remove the gradients if their norm is not finite: an optimiser ignores parameters without one.

        Args:
            norm: of all gradients.
            parameters: whose gradients these are.
            scaled: gradients are scaled for half precision.

        Raises:
            NonFiniteError: many steps in a row were skipped.
        """
        if torch.isfinite(norm):
            self._in_a_row, self._reason = 0, ""
            return
        for parameter in parameters:
            parameter.grad = None
        self.skipped += 1
        self._in_a_row += 1
        reason = self._reason or "the losses of this rank are finite"
        if self._in_a_row >= (IN_A_ROW_SCALED if scaled else IN_A_ROW):
            raise NonFiniteError(
                f"non-finite gradients in {self._in_a_row} steps in a row ({reason}); {DIVERGED}"
            )
        if self._reason or not scaled:
            _log.warning("a step with non-finite gradients is skipped: %s", reason)
        self._reason = ""
