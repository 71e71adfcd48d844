"""Memory of the process."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_MOST, _MOST_BEFORE_GLIBC_2_35 = 2**31 - 1, 2**25


def keep_freed_memory() -> None:
    """Reuse freed memory for the next tensors; by default, glibc returns large blocks to the system.

    The system fills every new page with zeros, which takes a quarter of the time of a forward pass on a CPU.
    Does nothing with other C libraries, and if one of glibc's ``MALLOC_*`` variables is set. Threads other
    than the main one still return blocks of more than 64 MB.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        if not libc.mallopt(_MMAP_THRESHOLD, _MOST):
            libc.mallopt(_MMAP_THRESHOLD, _MOST_BEFORE_GLIBC_2_35)
        libc.mallopt(_TRIM_THRESHOLD, _MOST)
