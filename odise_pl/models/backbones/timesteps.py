"""Check of the diffusion steps. Imports no torch, so settings are checked before it loads."""

from __future__ import annotations

from collections.abc import Sequence

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
    given = list(timesteps) if listed else timesteps
    steps = tuple(given) if isinstance(given, list) else ()
    bad = [t for t in steps if not isinstance(t, int) or isinstance(t, bool) or not 0 <= t < STEPS]
    if not steps or bad or len(set(steps)) != len(steps):
        raise SettingError(
            f"backbone.timesteps={given} must be a list of different integers in 0..{STEPS - 1}, e.g. [0], "
            f"or {LEARNABLE}"
        )
    return steps
