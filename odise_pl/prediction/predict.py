"""Segment pictures and write the results to files."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from odise_pl.data.images import read_image
from odise_pl.data.records import DataError
from odise_pl.errors import SettingError
from odise_pl.prediction.inputs import Words, load_words
from odise_pl.prediction.page import ResultPage
from odise_pl.prediction.pictures import find_images
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.vocabulary import Vocabulary, VocabularyError


class _Picture(NamedTuple):
    """An image, its file, and the relative path of its results without suffix."""

    image: Image.Image
    path: Path
    result: Path


def predict(
    checkpoint: Path,
    pictures: Sequence[str],
    words: str,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    other: str | None = None,
    batch: int = 1,
    html: bool = False,
) -> list[str]:
    """Segment pictures, write the results and print the segments of each picture.

    Args:
        checkpoint, settings, device: see :meth:`Segmenter.from_pretrained`.
        pictures: see :func:`find_images`.
        words, other: see :meth:`Segmenter.__call__`.
        out: folder of the results.
        batch: pictures in memory; those of one size share a pass.
        html: also write ``index.html``, a page of all results.

    Returns:
        an error message for each skipped picture.

    Raises:
        UserError: an argument is wrong.
    """
    # Pillow warns of large pictures and refuses very large ones
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    images = find_images(pictures)
    vocabulary = _load("--words", words)
    background = _load("--other", other) if other is not None else None
    _load("--other", vocabulary, background)  # refuses words of both
    segmenter = Segmenter.from_pretrained(checkpoint, settings, device)
    page = ResultPage(out) if html else None
    unread: list[str] = []  # messages, because the errors would keep the images in memory
    try:
        with closing(_read(images, unread)) as readable:
            while group := list(islice(readable, batch)):
                found = segmenter([picture.image for picture in group], vocabulary, other=background)
                for picture, result in zip(group, found, strict=True):
                    result.save((out / picture.result).parent, picture.result.name)
                    threshold = segmenter.model.inference.overlap_threshold
                    print(f"{picture.path}: {_describe(result, threshold)}", flush=True)
                    if page:
                        page.add(picture.path, picture.result, result.segments)
        if page and len(unread) < len(images):
            page.write(unread)
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"--batch {batch}: out of GPU memory; lower it, or --set data.eval_short_side=512"
        ) from error
    except OSError as error:
        raise SettingError(f"--out {out}: {error}") from error
    if len(unread) < len(images):
        print(f"written: {out}/NAME_segments.png, NAME_ids.png, NAME.json{', index.html' if html else ''}")
    return unread


def _load(option: str, words: Words, other: Words | None = None) -> Vocabulary:
    try:
        return load_words(words, other)[0]
    except VocabularyError as error:
        raise SettingError(f"{option}: {error}") from error


def _read(images: Mapping[Path, Path], unread: list[str]) -> Generator[_Picture, None, None]:
    """Read pictures one after the other, with a progress bar on a terminal; append to ``unread``."""
    console = Console()
    hidden = len(images) < 2 or not console.is_terminal
    for result, path in track(images.items(), "pictures", console=console, transient=True, disable=hidden):
        try:
            yield _Picture(read_image(path), path, result)
        except DataError as error:
            unread.append(str(error))


def _describe(result: Segmentation, threshold: float) -> str:
    """The segments in words; without any, how to lower the threshold of overlaps."""
    if result.segments:
        return ", ".join(f"{segment.name} ({segment.score:.2f})" for segment in result.segments)
    label, score = result.prediction.best
    if label >= len(result.vocabulary):
        return f"no segment (words of --other have the best score, {score:.2f})"
    return (
        f"no segment (best score {score:.2f}: {result.vocabulary.names[label]}); see more with a lower "
        f"threshold: --set model.inference.overlap_threshold={threshold / 2:.2g}"
    )
