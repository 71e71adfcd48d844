"""Batches of pictures, their parts, and captions of both, for the pre-training of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odise_pl.models.backbones.tokens import tokenize
from odise_pl.toyworld.scene import pick
from scripts.pretrain_toyworld.corpus import SIDE, Box, Corpus, Picture, Pixels, enlarge, halve
from scripts.pretrain_toyworld.networks import CLIP
from scripts.pretrain_toyworld.training import Batch, pixels

PATCHES = 64  # visible ones of an image, a quarter
WHOLE = (0, 0, SIDE, SIDE)
_DETAILS = 0.7  # share of images that show one thing or kind of stuff
_ENLARGED = 0.4  # share of details that are enlarged to fill the image
_MOSAICS = 0.4  # share of images that are composed of four, so that things are small
_SURROUNDINGS = 0.4  # largest margin on each side of a thing, relative to its size
_RADIUS = (0.7, 1.5)  # of the ellipse of visible patches; 1 touches the sides of the box
_SHOWN = (0.4, 1.0)  # share of the patches in it that are visible


def clip_batch(corpus: Corpus, steps: int, size: int, random: np.random.Generator, number: int) -> Batch:
    """The batch of one step. Each third of ``steps`` has its own kind:

    * :func:`patches_batch` of whole pictures and enlarged things, which teach names quickly;
    * :func:`patches_batch` of mostly things and stuff, more than half of them in their own size; the text
      encoder is frozen (LiT, arXiv 2111.07991), because the image encoder needs more time;
    * :func:`regions_batch` of parts within their pictures, as masked CLIP sees them.
    """
    third = 3 * number // steps
    batch = (
        patches_batch(corpus, third == 0, size, random) if third < 2 else regions_batch(corpus, size, random)
    )
    return batch | {"text_learns": torch.tensor(third != 1)}


def patches_batch(corpus: Corpus, easy: bool, size: int, random: np.random.Generator) -> Batch:
    """``images`` [size, 3, SIDE, SIDE] in 0..1, visible ``patches`` [size, PATCHES], and ``tokens`` of each.

    Some images are whole pictures, most are details. Details are enlarged, or, unless ``easy``, shown in
    their own size with only the patches inside visible.
    """
    shown = [_show(pick(corpus, random), easy, random) for _ in range(size)]
    images, boxes, captions = zip(*shown, strict=True)
    # as evenly as possible where a box has fewer patches
    patches = [np.resize(random.permutation(patches_of(box)), PATCHES) for box in boxes]
    return {
        "images": pixels(images),
        "patches": torch.from_numpy(np.stack(patches)),
        "tokens": tokens_of(captions),
    }


def details_batch(corpus: Corpus, size: int, random: np.random.Generator, number: int) -> Batch:
    """``images`` [size, 3, SIDE, SIDE] in 0..1 of whole pictures and enlarged things, and their ``tokens``.

    The number of the batch is ignored.
    """
    batch = patches_batch(corpus, True, size, random)
    return {name: batch[name] for name in ("images", "tokens")}


def _show(picture: Picture, easy: bool, random: np.random.Generator) -> tuple[Pixels, Box, str]:
    """An image, its visible box, and a caption of that."""
    details = [detail for detail in picture.details if detail.thing or not easy]
    if not details or random.random() >= _DETAILS:
        return picture.image, WHOLE, pick(picture.captions, random)
    detail = pick(details, random)
    box, caption = _around(detail.box, random), pick(detail.captions, random)
    if easy or random.random() < _ENLARGED:
        return enlarge(picture.image, box), WHOLE, caption
    return picture.image, box, caption


@dataclass(frozen=True)
class View:
    """An image and its captions.

    Attributes:
        image: uint8 [SIDE, SIDE, 3].
        caption: of the whole image; empty for a mosaic.
        parts: boxes, each with a caption.
    """

    image: Pixels
    caption: str
    parts: Sequence[tuple[Box, str]]


def regions_batch(corpus: Corpus, size: int, random: np.random.Generator) -> Batch:
    """A quarter of ``size`` images, and their captioned parts (grounded captions, as in arXiv 2306.14824).

    Returns:
        ``images`` [N, 3, SIDE, SIDE] in 0..1; ``captioned`` bool [N]; ``visible`` bool [N, R, patches],
        where rows without a part are empty; ``tokens`` of the captions of the images that have one, then of
        all parts.
    """
    views = [_view(corpus, random) for _ in range(max(1, size // 4))]
    visible = np.zeros((len(views), max(1, *(len(v.parts) for v in views)), len(patches_of(WHOLE))), bool)
    for view, rows in zip(views, visible, strict=True):
        for (box, _), row in zip(view.parts, rows, strict=False):
            row[_patches_like_a_mask(box, random)] = True
    captions = [view.caption for view in views if view.caption]
    return {
        "images": pixels([view.image for view in views]),
        "captioned": torch.tensor([bool(view.caption) for view in views]),
        "visible": torch.from_numpy(visible),
        "tokens": tokens_of([*captions, *(caption for view in views for _, caption in view.parts)]),
    }


def _patches_like_a_mask(box: Box, random: np.random.Generator) -> NDArray[np.int64]:
    """At least one of the patches in an ellipse in a box."""
    patches = patches_of(box)
    (left, top, right, bottom), size = box, CLIP.patch_size
    y, x = (size * (part + 0.5) for part in np.divmod(patches, SIDE // size))
    across, down = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
    away = across**2 + down**2
    inside = patches[away <= max(random.uniform(*_RADIUS) ** 2, away.min())]
    return random.permutation(inside)[: max(1, round(len(inside) * random.uniform(*_SHOWN)))]


def tokens_of(captions: Sequence[str]) -> Tensor:
    """Input of the text encoder: [N, length]."""
    return tokenize(captions, CLIP.text_vocabulary, CLIP.text_length)


def _view(corpus: Corpus, random: np.random.Generator) -> View:
    if random.random() < _MOSAICS:
        return mosaic([_single(pick(corpus, random), random) for _ in range(4)])
    return _single(pick(corpus, random), random)


def _single(picture: Picture, random: np.random.Generator) -> View:
    """A picture or an enlarged detail, with the details in it."""
    captions, box = picture.captions, WHOLE
    if picture.details and random.random() < _ENLARGED:
        detail = pick(picture.details, random)
        captions, box = detail.captions, _around(detail.box, random)
    seen = [part for part in picture.details if _is_inside(part.box, box)]
    parts = [(_moved(part.box, box, WHOLE), pick(part.captions, random)) for part in seen]
    return View(enlarge(picture.image, box), pick(captions, random), parts)


def mosaic(views: Sequence[View]) -> View:
    """Four views in one image (arXiv 2004.10934); each becomes a part and keeps its own parts."""
    half = SIDE // 2
    image = np.empty_like(views[0].image)
    parts: list[tuple[Box, str]] = []
    for number, view in enumerate(views):
        left, top = half * (number % 2), half * (number // 2)
        tile = (left, top, left + half, top + half)
        image[top : top + half, left : left + half] = halve(view.image)
        parts.append((tile, view.caption))
        parts += [(_moved(box, WHOLE, tile), caption) for box, caption in view.parts]
    return View(image, "", parts)


def _is_inside(part: Box, box: Box) -> bool:
    """Whether the centre of a part is in a box."""
    x, y = (part[0] + part[2]) / 2, (part[1] + part[3]) / 2
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def _moved(part: Box, box: Box, to: Box) -> Box:
    """A part after mapping ``box`` to ``to``, cut to it; at least one pixel wide and high."""
    corners, old, new = (np.reshape(each, (2, 2)) for each in (part, box, to))
    first, last = new[0] + (corners - old[0]) * (new[1] - new[0]) / (old[1] - old[0])
    first = np.clip(np.floor(first), new[0], new[1] - 1).astype(int)
    last = np.clip(np.ceil(last), first + 1, new[1]).astype(int)
    return (*first.tolist(), *last.tolist())


def _around(box: Box, random: np.random.Generator) -> Box:
    """A box and some of its surroundings."""
    left, top, right, bottom = box
    x, y = (round(side * random.uniform(0, _SURROUNDINGS)) for side in (right - left, bottom - top))
    return max(0, left - x), max(0, top - y), min(SIDE, right + x + 1), min(SIDE, bottom + y + 1)


def patches_of(box: Box) -> NDArray[np.int64]:
    """Indices of the patches that a box touches."""
    size = CLIP.patch_size
    left, top, right, bottom = box[0] // size, box[1] // size, -(-box[2] // size), -(-box[3] // size)
    return (SIDE // size * np.arange(top, bottom)[:, None] + np.arange(left, right)).ravel()
