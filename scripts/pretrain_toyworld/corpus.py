"""Captioned pictures of the whole small world for pre-training. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from odise_pl.data.prepare import processes
from odise_pl.toyworld.captions import write_captions, write_names
from odise_pl.toyworld.scene import Scene, paint_scene
from odise_pl.toyworld.style import WEB

SIDE = 128  # of the pictures, in pixels
_CHUNK = 500  # pictures that share a random generator
_CAPTIONS = 4  # of each picture
_DETAIL_CAPTIONS = 2  # of each detail
_SEED = 7
_TRIES = 12  # random boxes per kind of stuff
_PURE = 0.85  # least share of a box that has to show it
_PART = (16, 96)  # range of the sides of such a box, in pixels

Box = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels


@dataclass(frozen=True)
class Detail:
    """A thing in a picture, or a box of one kind of stuff, with ``captions`` that describe only it."""

    box: Box
    captions: Sequence[str]
    thing: bool


Text = tuple[Sequence[str], Sequence[Detail]]  # captions and details of one picture


@dataclass(frozen=True)
class Corpus:
    """Pictures in memory.

    Attributes:
        images: uint8 [N, SIDE, SIDE, 3].
        captions: of each picture.
        details: of each picture.
    """

    images: NDArray[np.uint8]
    captions: Sequence[Sequence[str]]
    details: Sequence[Sequence[Detail]]

    def __len__(self) -> int:
        return len(self.captions)


def paint_corpus(count: int, workers: int = 2) -> Corpus:
    """The first ``count`` pictures of the corpus, which is fixed."""
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    texts: list[Text] = []
    starts = range(0, count, _CHUNK)
    parts = processes.run(partial(_paint_chunk, count), starts, workers)
    for start, (painted, written) in zip(starts, parts, strict=True):
        images[start : start + len(painted)] = painted
        texts += written
    captions, details = zip(*texts, strict=True)
    return Corpus(images, captions, details)


def _paint_chunk(count: int, start: int) -> tuple[NDArray[np.uint8], list[Text]]:
    number = start // _CHUNK
    random, other = np.random.default_rng([_SEED, number]), np.random.default_rng([_SEED, number, 1])
    images: NDArray[np.uint8] = np.empty((min(_CHUNK, count - start), SIDE, SIDE, 3), np.uint8)
    texts: list[Text] = []
    for image in images:
        scene = paint_scene(random, WEB)
        image[:] = scene.image
        texts.append((write_captions(scene, random, _CAPTIONS), _details(scene, other)))
    return images, texts


def _details(scene: Scene, random: np.random.Generator) -> list[Detail]:
    details = []
    for placed in scene.things:
        left, top, right, bottom = (min(SIDE, max(0, round(side))) for side in placed.box)
        captions = write_captions(replace(scene, things=(placed,)), random, _DETAIL_CAPTIONS)
        details.append(Detail((left, top, right, bottom), captions, thing=True))
    parts = [(stuff, _part(scene.ids == number, random)) for number, stuff in scene.stuff]
    for stuff, box in parts:
        if box is not None:
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
