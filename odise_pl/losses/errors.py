"""The one error of the losses."""

from odise_pl.errors import UserError

DIVERGED = (
    "training has diverged: lower optimizer.lr, or set trainer.precision=32-true, "
    "and resume from the last checkpoint"
)


class NonFiniteError(UserError, FloatingPointError):
    """A cost or loss is NaN or infinite; the message names the images and the term."""
