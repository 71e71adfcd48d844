"""What the console shows: this project's lines alone."""

from __future__ import annotations

import logging
import os
import warnings

_LIBRARIES = r"(lightning|torch|transformers|diffusers|open_clip|huggingface_hub)\b"


def quiet_libraries() -> None:
    """Hide libraries' advertisements, deprecation notes and progress bars; their errors stay.

    Call it before anything imports torch.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it once
    import diffusers
    import lightning.pytorch  # noqa: F401 (it sets the levels of its loggers)
    import transformers

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # Hydra's handlers print the same lines
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)  # a rank that died
    warnings.filterwarnings("ignore", module=_LIBRARIES)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for library in (transformers, diffusers):
        library.logging.disable_progress_bar()
        library.logging.set_verbosity_error()
