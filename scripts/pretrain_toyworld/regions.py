"""Pictures with captions of their parts: grounded captions, as in arXiv 2306.14824."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.backbones.tokens import tokenize as byte_pairs
from odise_pl.toyworld.captions import pick
from scripts.pretrain_toyworld.corpus import SIDE, Box, Corpus
from scripts.pretrain_toyworld.models import CLIP, VOCABULARY
from scripts.pretrain_toyworld.schedule import Batch, pixels

ENLARGED = 0.4  # share of details that are enlarged to fill the image
_MOSAICS = 0.4  # share of images that are composed of four, so that things are small
_SURROUNDINGS = 0.4  # largest margin on each side of a thing, relative to its size
_RADIUS = (0.7, 1.5)  # of the ellipse of visible patches; 1 touches the sides of the box
_SHOWN = (0.4, 1.0)  # share of the patches in it that are visible
WHOLE = (0, 0, SIDE, SIDE)


@dataclass(frozen=True)
class View:
    """An image and its captions.

    Attributes:
        image: [1, 3, SIDE, SIDE] in 0..1.
        caption: of the whole image; None for a mosaic.
        parts: boxes, each with a caption.
    """

    image: Tensor
    caption: str | None
    parts: Sequence[tuple[Box, str]]


def regions_batch(corpus: Corpus, size: int, random: np.random.Generator) -> Batch:
    """A quarter of ``size`` images, and their captioned parts.

    Returns:
        ``images`` [N, 3, SIDE, SIDE] in 0..1; ``captioned`` bool [N]; ``visible`` bool [N, R, patches],
        where rows without a part are empty; ``tokens`` of the captions of the images that have one, then of
        all parts.
    """
    views = [_view(corpus, random) for _ in range(max(1, size // 4))]
    visible = np.zeros((len(views), max(1, *(len(v.parts) for v in views)), len(patches_of(WHOLE))), bool)
    for view, rows in zip(views, visible, strict=True):
        for (box, _), row in zip(view.parts, rows, strict=False):
            row[_some(box, random)] = True
    captions = [view.caption for view in views if view.caption is not None]
    return {
        "images": torch.cat([view.image for view in views]),
        "captioned": torch.tensor([view.caption is not None for view in views]),
        "visible": torch.from_numpy(visible),
        "tokens": tokens_of([*captions, *(caption for view in views for _, caption in view.parts)]),
    }


def _some(box: Box, random: np.random.Generator) -> NDArray[np.int64]:
    """At least one of the patches in an ellipse in a box: they stand in for a mask."""
    patches = patches_of(box)
    (left, top, right, bottom), size = box, CLIP.patch_size
    y, x = (size * (part + 0.5) for part in np.divmod(patches, SIDE // size))
    across, down = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
    away = across**2 + down**2
    inside = patches[away <= max(random.uniform(*_RADIUS) ** 2, away.min())]
    return random.permutation(inside)[: max(1, round(len(inside) * random.uniform(*_SHOWN)))]


def tokens_of(captions: Sequence[str]) -> Tensor:
    """Input of the text encoder: [N, length]."""
    return byte_pairs(captions, VOCABULARY, CLIP.text_length)


def _view(corpus: Corpus, random: np.random.Generator) -> View:
    if random.random() < _MOSAICS:
        return mosaic([_single(corpus, random) for _ in range(4)])
    return _single(corpus, random)


def _single(corpus: Corpus, random: np.random.Generator) -> View:
    """A picture or an enlarged detail, with the details in it."""
    index = int(random.integers(len(corpus)))
    details, captions, box = corpus.details[index], corpus.captions[index], WHOLE
    if details and random.random() < ENLARGED:
        detail = pick(details, random)
        captions, box = detail.captions, around(detail.box, random)
    seen = [part for part in details if _is_inside(part.box, box)]
    parts = [(_moved(part.box, box, WHOLE), pick(part.captions, random)) for part in seen]
    return View(enlarged(pixels([corpus.images[index]]), box), pick(captions, random), parts)


def mosaic(views: Sequence[View]) -> View:
    """Four views in one image (arXiv 2004.10934); each becomes a part and keeps its own parts."""
    half = SIDE // 2
    small = [F.interpolate(view.image, (half, half), mode="area") for view in views]
    parts: list[tuple[Box, str]] = []
    for number, view in enumerate(views):
        left, top = half * (number % 2), half * (number // 2)
        tile = (left, top, left + half, top + half)
        parts += [(tile, view.caption)] if view.caption is not None else []
        parts += [(_moved(box, WHOLE, tile), caption) for box, caption in view.parts]
    image = torch.cat([torch.cat(small[:2], dim=3), torch.cat(small[2:], dim=3)], dim=2)
    return View(image, None, parts)


def _is_inside(part: Box, box: Box) -> bool:
    """Whether the centre of a part is in a box."""
    x, y = (part[0] + part[2]) / 2, (part[1] + part[3]) / 2
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def _moved(part: Box, box: Box, to: Box) -> Box:
    """A part after mapping ``box`` to ``to``; at least one pixel wide and high."""
    left, right = _scaled(part[::2], box[::2], to[::2])
    top, bottom = _scaled(part[1::2], box[1::2], to[1::2])
    return left, top, right, bottom


def _scaled(part: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, int]:
    scale = (new[1] - new[0]) / (old[1] - old[0])
    start, end = (new[0] + (side - old[0]) * scale for side in part)
    first = min(new[1] - 1, max(new[0], math.floor(start)))
    return first, max(first + 1, min(new[1], math.ceil(end)))


def around(box: Box, random: np.random.Generator) -> Box:
    """A box and some of its surroundings."""
    left, top, right, bottom = box
    x, y = (round(side * random.uniform(0, _SURROUNDINGS)) for side in (right - left, bottom - top))
    return max(0, left - x), max(0, top - y), min(SIDE, right + x + 1), min(SIDE, bottom + y + 1)


def enlarged(image: Tensor, box: Box) -> Tensor:
    """A box of an image [1, 3, SIDE, SIDE], resized to fill it."""
    left, top, right, bottom = box
    cut = image[..., top:bottom, left:right]
    return F.interpolate(cut, (SIDE, SIDE), mode="bilinear", align_corners=False)


def patches_of(box: Box) -> NDArray[np.int64]:
    """Indices of the patches that a box touches."""
    size = CLIP.patch_size
    left, top, right, bottom = box[0] // size, box[1] // size, -(-box[2] // size), -(-box[3] // size)
    return (SIDE // size * np.arange(top, bottom)[:, None] + np.arange(left, right)).ravel()
