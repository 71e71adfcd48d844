"""The error for non-finite losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from odise_pl.errors import UserError

DIVERGED = (
    "training has diverged: resume with trainer.precision=32-true ckpt=last, or start another run with "
    "a lower optimizer.lr and init_from=CKPT"
)


class NonFiniteError(UserError, FloatingPointError):
    """A cost or loss is NaN or infinite; the message names the images and the term.

    Attributes:
        losses: what the criterion would have returned. Their backward pass still sends (non-finite) gradients
            to the other ranks, which wait for them.
    """

    def __init__(self, message: str, losses: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.losses = list(losses)
