"""Segment pictures and write the results to files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from odise_pl.data.records import DataError
from odise_pl.errors import SettingError
from odise_pl.prediction.pictures import find_images
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.vocabulary import VocabularyError, load_vocabulary


def predict(
    checkpoint: Path,
    pictures: Sequence[str],
    words: str,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> list[str]:
    """Segment pictures, write the results and print the segments of each picture.

    Args:
        checkpoint, settings, device: see :meth:`Segmenter.from_pretrained`.
        pictures: see :func:`find_images`.
        words: see :func:`load_vocabulary`.
        out: folder of the results.

    Returns:
        an error message for each skipped picture.

    Raises:
        UserError: an argument is wrong.
    """
    # Pillow warns of large pictures and refuses very large ones
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    images = find_images(pictures)
    try:
        vocabulary = load_vocabulary(words, one_word=True)
    except VocabularyError as error:
        raise SettingError(f"--words: {error}") from error
    segmenter = Segmenter.from_pretrained(checkpoint, settings, device)
    unread: list[str] = []  # messages, because the errors would keep the images in memory
    for result, path in images.items():
        try:
            found = segmenter(path, vocabulary)
            found.save((out / result).parent, result.name)
            print(f"{path}: {_describe(found)}", flush=True)
        except DataError as error:
            unread.append(str(error))
        except OSError as error:
            raise SettingError(f"--out {out}: {error}") from error
    if len(unread) < len(images):
        print(f"written: {out}/NAME_segments.png, NAME_ids.png, NAME.json")
    return unread


def _describe(result: Segmentation) -> str:
    """The segments in words."""
    if result.segments:
        return ", ".join(f"{segment.name} ({segment.score:.2f})" for segment in result.segments)
    label, score = result.prediction.best
    return (
        f"no segment (best score {score:.2f}: {result.vocabulary.names[label]}); see more with a lower "
        "threshold: --set model.inference.overlap_threshold=0.5"
    )
