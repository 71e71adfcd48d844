"""Keep the console free of other libraries' output."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = r"(lightning|torch|transformers|diffusers|open_clip|huggingface_hub)\b"


def quiet_libraries() -> None:
    """Hide advertisements, deprecation warnings and progress bars of libraries, but not their errors.

    Call it before anything imports torch, whose threads then sleep while they wait for each other.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it once
    # spinning takes the processor from the thread that is waited for, if other programs need one too
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with fast_imports():
        import diffusers
        import transformers

    warnings.filterwarnings("ignore", module=_LIBRARIES)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for library in (transformers, diffusers):
        library.logging.disable_progress_bar()
        library.logging.set_verbosity_error()


def quiet_lightning() -> None:
    """:func:`quiet_libraries`, and Lightning, whose import takes seconds: to train or evaluate."""
    quiet_libraries()
    import lightning.pytorch  # noqa: F401 (its import sets the levels of its loggers)

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # Hydra's handlers print the same lines
        logging.getLogger(name).setLevel(logging.WARNING)
    # reports ranks that died
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import libraries without looking for garbage, which takes a tenth of the time, and finds little."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, as for weights that load in a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
