"""The one error of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from odise_pl.errors import UserError

DIVERGED = (
    "training has diverged: lower optimizer.lr, or set trainer.precision=32-true, "
    "and resume from the last checkpoint"
)


class NonFiniteError(UserError, FloatingPointError):
    """A cost or loss is NaN or infinite; the message names the images and the term.

    Attributes:
        losses: what the criterion would have returned. They are no numbers, but every prediction is a part of
            them: ranks that wait for this one's gradients get them, and learn that they are none.
    """

    def __init__(self, message: str, losses: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.losses = list(losses)
