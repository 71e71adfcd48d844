"""Steps whose gradients are no numbers are left out, by all ranks alike; many in a row end training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from odise_pl.losses.errors import DIVERGED, NonFiniteError

_log = logging.getLogger(__name__)
IN_A_ROW = 5
# Half precision looks for the factor of its gradients by leaving out steps, from 65536 downwards.
IN_A_ROW_SCALED = 30


class StepGuard:
    """Decides after the backward pass whether an optimiser step is taken.

    The gradients are those of all ranks together, so every rank decides the same without asking.

    Attributes:
        left_out: steps that were left out so far.
    """

    def __init__(self) -> None:
        self.left_out = 0
        self._in_a_row = 0
        self._reason = ""

    def note(self, error: NonFiniteError) -> None:
        """Why the step that is being computed will have no gradients."""
        self._reason = str(error).removesuffix(DIVERGED).rstrip("; ")

    def state_dict(self) -> dict[str, int]:
        """Steps skipped so far, and how many of them in a row up to now."""
        return {"left_out": self.left_out, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """See :meth:`state_dict`; checkpoints of earlier versions have nothing of it."""
        self.left_out, self._in_a_row = state.get("left_out", 0), state.get("in_a_row", 0)

    def admits(self, norm: Tensor, parameters: Iterable[nn.Parameter], scaled: bool = False) -> bool:
        """Whether a step with gradients of this norm is taken; else it changes nothing.

        Args:
            norm: of all gradients.
            parameters: whose gradients are taken away then: an optimiser passes over them.
            scaled: gradients are scaled for half precision.

        Raises:
            NonFiniteError: none was taken many times in a row.
        """
        if torch.isfinite(norm):
            self._in_a_row, self._reason = 0, ""
            return True
        for parameter in parameters:
            parameter.grad = None
        self.left_out += 1
        self._in_a_row += 1
        self._tell(IN_A_ROW_SCALED if scaled else IN_A_ROW, scaled)
        return False

    def _tell(self, limit: int, scaled: bool) -> None:
        reason = self._reason or "none of this process's losses is to blame"
        if self._in_a_row >= limit:
            raise NonFiniteError(
                f"no gradients that are numbers in {self._in_a_row} steps in a row ({reason}); {DIVERGED}"
            )
        if self._reason or not scaled:
            _log.warning("a step is left out, its gradients are NaN or infinite: %s", reason)
        self._reason = ""
