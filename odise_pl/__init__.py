"""Open-vocabulary panoptic segmentation with text-to-image diffusion models (arXiv 2303.04803)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odise_pl.prediction.segmentation import Segmentation
    from odise_pl.prediction.segmenter import Segmenter
    from odise_pl.vocabulary import Vocabulary, load_vocabulary

__all__ = ["Segmentation", "Segmenter", "Vocabulary", "load_vocabulary"]
__version__ = "0.2.0"
_HOMES = {
    "Segmentation": "odise_pl.prediction.segmentation",
    "Segmenter": "odise_pl.prediction.segmenter",
    "Vocabulary": "odise_pl.vocabulary",
    "load_vocabulary": "odise_pl.vocabulary",
}


def __getattr__(name: str) -> Any:  # torch takes seconds to import, and commands start without it
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
