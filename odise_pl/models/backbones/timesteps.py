"""Check of the diffusion steps. Imports no torch, so settings are checked before it loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from odise_pl.errors import SettingError

STEPS = 1000
LEARNABLE = "learnable"


def learns_time(timesteps: Sequence[int] | str) -> bool:
    """Whether the captioner learns a time embedding, starting from step 0."""
    return timesteps == LEARNABLE


def check_timesteps(timesteps: Sequence[int] | str) -> tuple[int, ...]:
    """Diffusion steps as a tuple; (0,) for ``learnable``.

    Raises:
        SettingError: not a list of different steps in 0..999.
    """
    if learns_time(timesteps):
        return (0,)
    listed = isinstance(timesteps, Sequence) and not isinstance(timesteps, str)
    steps: tuple[Any, ...] = tuple(timesteps) if listed else ()
    valid = all(type(t) is int and 0 <= t < STEPS for t in steps)
    if not steps or not valid or len(set(steps)) < len(steps):
        raise SettingError(
            f"backbone.timesteps={list(steps) or timesteps} must be a list of different integers in "
            f"0..{STEPS - 1}, e.g. [0], or {LEARNABLE}"
        )
    return steps
