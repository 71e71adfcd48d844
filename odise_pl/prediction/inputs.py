"""What a segmenter is given: images and words, in any form that users have them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from odise_pl.data.images import read_image, to_upright_rgb
from odise_pl.data.records import DataError
from odise_pl.vocabulary import Vocabulary, load_vocabulary

ImageSource = str | Path | Image.Image | NDArray[np.uint8] | Tensor
Words = Vocabulary | str | Path | Sequence[Any]


def load_image(image: ImageSource) -> Image.Image:
    """An upright RGB image.

    Args:
        image: a path, a Pillow image, uint8 [H, W, 3] (red, green, blue) or [H, W] (grey), or a tensor
            [3, H, W], uint8 or float in 0..1, which is rounded to 8 bits.

    Raises:
        TypeError: it is of another type.
        DataError: it cannot be read as RGB, or has no pixels.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, np.ndarray | Tensor) and 0 in image.shape:
        raise DataError(f"an image of shape {list(image.shape)} has no pixels")
    if isinstance(image, Tensor) and image.shape[:-2] == (3,):
        image = _to_8_bits(image.detach()).permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] in ((), (3,)):
        image = Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Image.Image):
        found = " ".join(str(getattr(image, name, "")) for name in ("dtype", "shape"))
        raise TypeError(
            f"image is {type(image).__name__} {found}".strip() + ", expected a path, a Pillow image, a uint8 "
            "array [H, W, 3] or [H, W], a tensor [3, H, W], or a list of these"
        )
    return to_upright_rgb(image)


def _to_8_bits(image: Tensor) -> Tensor:
    """Floats as uint8; other tensors stay unchanged."""
    if not image.is_floating_point():
        return image
    low, high = image.min().item(), image.max().item()
    if not (low >= 0 and high <= 1):  # also for NaN
        raise DataError(f"an image of floats has values from {low:g} to {high:g}; scale it to 0..1")
    return (image.float() * 255).round().byte()


def load_words(words: Words, other: Words | None = None) -> tuple[Vocabulary, Vocabulary]:
    """What to look for, and the same followed by background words.

    One word with an underscore is taken for a misspelt name of a packaged vocabulary.

    Args:
        words, other: see :func:`~odise_pl.vocabulary.load_vocabulary`.

    Raises:
        VocabularyError: there are no words, or duplicates.
    """
    listed = _load(words)
    if other is None:
        return listed, listed
    first = 1 + max(category.id for category in listed.categories)  # ids in a vocabulary are unique
    rest = (replace(category, id=first + n) for n, category in enumerate(_load(other).categories))
    return listed, Vocabulary(listed.name, (*listed.categories, *rest))


def _load(words: Words) -> Vocabulary:
    return load_vocabulary(words, one_word=not (isinstance(words, str) and "_" in words))
