"""Which diffusion steps may be read. Imports no torch, so that settings are checked before it loads."""

from __future__ import annotations

from collections.abc import Sequence

from odise_pl.errors import SettingError

STEPS = 1000
LEARNABLE = "learnable"


def learns_time(timesteps: Sequence[int] | str) -> bool:
    """Whether the setting is ``learnable``: step 0, whose time embedding the captioner learns to move."""
    return timesteps == LEARNABLE


def check_timesteps(timesteps: Sequence[int] | str) -> tuple[int, ...]:
    """Diffusion steps as a tuple; ``learnable`` starts from step 0.

    Raises:
        SettingError: an empty list, a repeated step, one outside 0..999, or another word.
    """
    if learns_time(timesteps):
        return (0,)
    listed = isinstance(timesteps, Sequence) and not isinstance(timesteps, str)
    given = list(timesteps) if listed else timesteps
    steps = tuple(given) if isinstance(given, list) else ()
    bad = [t for t in steps if not isinstance(t, int) or isinstance(t, bool) or not 0 <= t < STEPS]
    if not steps or bad or len(set(steps)) != len(steps):
        raise SettingError(
            f"backbone.timesteps={given}: give different whole numbers in 0..{STEPS - 1} as a list, "
            f"e.g. [0], or {LEARNABLE}"
        )
    return steps
