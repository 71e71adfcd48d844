"""Captioned pictures of the whole small world for pre-training. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from odise_pl.data.prepare import processes
from odise_pl.toyworld.captions import write_captions, write_names
from odise_pl.toyworld.make import KINDS
from odise_pl.toyworld.scene import Scene, paint_scene
from odise_pl.toyworld.style import Style

SIDE = 128  # of the pictures, in pixels
_CAPTIONS = 4  # of each picture
_DETAIL_CAPTIONS = 2  # of each detail
_SEED = 7
_TRIES = 12  # random boxes per kind of stuff
_PURE = 0.85  # least share of a box that has to show it
_PART = (16, 96)  # range of the sides of such a box, in pixels

# as on the web: everything
WEB = Style(
    sides=(128, 128),
    objects=(1, 5),
    extent=(0.1, 0.3),
    close_up=0.5,
    indoor=0.35,
    light=(0.75, 1.05),
    saturation=(0.6, 1.1),
    shade=(0.1, 0.4),
    texture=(0.0, 0.09),
    grain=(0.0, 0.025),
)

Pixels = NDArray[np.uint8]  # [SIDE, SIDE, 3]
Box = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels


@dataclass(frozen=True)
class Detail:
    """A thing in a picture, or a box of one kind of stuff, with ``captions`` that describe only it."""

    box: Box
    captions: Sequence[str]
    thing: bool


@dataclass(frozen=True)
class Picture:
    """A picture, captions of the whole, its details, and the numbers in ``KINDS`` of what is in it."""

    image: Pixels
    captions: Sequence[str]
    details: Sequence[Detail]
    kinds: Sequence[int]


Corpus = Sequence[Picture]


def paint_corpus(count: int, workers: int = 2) -> Corpus:
    """The first ``count`` pictures of the corpus, which is fixed."""
    return processes.run(_paint_picture, range(count), workers, "painting", chunk=100)


def _paint_picture(number: int) -> Picture:
    random = np.random.default_rng([_SEED, number])
    scene = paint_scene(random, WEB)
    found = [*(placed.thing for placed in scene.things), *(stuff for _, stuff in scene.stuff)]
    kinds = [number for number, kind in enumerate(KINDS) if kind in found]
    return Picture(scene.image, write_captions(scene, random, _CAPTIONS), _details(scene, random), kinds)


def _details(scene: Scene, random: np.random.Generator) -> list[Detail]:
    details = []
    for placed in scene.things:
        left, top, right, bottom = (min(SIDE, max(0, round(side))) for side in placed.box)
        captions = write_captions(replace(scene, things=(placed,)), random, _DETAIL_CAPTIONS)
        details.append(Detail((left, top, right, bottom), captions, thing=True))
    for number, stuff in scene.stuff:
        if box := _part(scene.ids == number, random):
            details.append(Detail(box, write_names(stuff, random, _DETAIL_CAPTIONS), thing=False))
    return details


def _part(mask: NDArray[np.bool_], random: np.random.Generator) -> Box | None:
    """The largest of some random boxes that mostly show the mask."""
    boxes = []
    for _ in range(_TRIES):
        width, height = (int(side) for side in random.integers(*_PART, size=2))
        left, top = int(random.integers(SIDE - width + 1)), int(random.integers(SIDE - height + 1))
        if mask[top : top + height, left : left + width].mean() >= _PURE:
            boxes.append((left, top, left + width, top + height))
    return max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=None)


def halve(image: Pixels) -> Pixels:
    """A picture of half the side."""
    return np.asarray(Image.fromarray(image).reduce(2))


def enlarge(image: Pixels, box: tuple[float, ...]) -> Pixels:
    """A box of a picture, resized to [SIDE, SIDE, 3]."""
    cut = Image.fromarray(image).crop(tuple(round(side) for side in box))  # type: ignore[arg-type]
    return np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
