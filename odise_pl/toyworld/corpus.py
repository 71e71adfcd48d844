"""Pictures with captions of the whole small world: what its frozen models are pre-trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odise_pl.data.prepare import processes
from odise_pl.data.records import DataError
from odise_pl.files import write_text
from odise_pl.toyworld.captions import write_captions, write_names
from odise_pl.toyworld.scene import Scene, paint_scene
from odise_pl.toyworld.style import WEB

CHUNK = 500  # pictures in a file
CAPTIONS = 4  # of each picture
DETAIL_CAPTIONS = 2  # of each detail
SIDE = 128
_SEED = 7
_TRIES = 12  # boxes that are drawn to find one that shows a kind of stuff alone, ...
_PURE = 0.85  # ... or this share of it at least
_PART = (16, 96)  # range of the sides of such a box, in pixels

Box = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels


@dataclass(frozen=True)
class Detail:
    """A thing in a picture, or a part that shows one kind of stuff: its box and captions of it alone.

    Attributes:
        box: where it is.
        captions: as people write them under such a picture.
        thing: whether it is a thing.
    """

    box: Box
    captions: Sequence[str]
    thing: bool


@dataclass(frozen=True)
class Corpus:
    """Pictures in memory-mapped files.

    Attributes:
        images: of each chunk, uint8 [CHUNK, SIDE, SIDE, 3].
        captions: of each picture.
        details: of each picture.
    """

    images: Sequence[NDArray[np.uint8]]
    captions: Sequence[Sequence[str]]
    details: Sequence[Sequence[Detail]]

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int) -> NDArray[np.uint8]:
        """uint8 [SIDE, SIDE, 3]."""
        return self.images[index // CHUNK][index % CHUNK]


def paint_corpus(folder: Path, chunks: int, workers: int = 2) -> Corpus:
    """The first ``chunks`` files of the corpus; those that are there already are kept.

    Raises:
        DataError: one is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(chunks) if not _path(folder, number, "json").exists()]
    for _ in processes.run(partial(_paint_chunk, folder), missing, workers):
        pass
    images, texts = zip(*(_read_chunk(folder, number) for number in range(chunks)), strict=True)
    return Corpus(
        images,
        [captions for some in texts for captions, _ in some],
        [details for some in texts for _, details in some],
    )


def _read_chunk(folder: Path, number: int) -> tuple[NDArray[np.uint8], list[tuple[list[str], list[Detail]]]]:
    text = _path(folder, number, "json")
    try:
        images = np.load(_path(folder, number, "npy"), mmap_mode="r")
        texts = [
            (one["captions"], [Detail(tuple(d["box"]), d["captions"], d["thing"]) for d in one["details"]])
            for one in json.loads(text.read_text(encoding="utf-8"))
        ]
        if images.shape != (CHUNK, SIDE, SIDE, 3) or len(texts) != CHUNK:
            raise ValueError(f"it is not of {CHUNK} pictures")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{text} or .npy is damaged ({error}): delete it to have it painted anew") from error
    return images, texts


def _path(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"corpus_{number:04d}.{suffix}"


def _paint_chunk(folder: Path, number: int) -> None:
    random, other = np.random.default_rng([_SEED, number]), np.random.default_rng([_SEED, number, 1])
    images, texts = np.empty((CHUNK, SIDE, SIDE, 3), np.uint8), []
    for image in images:
        scene = paint_scene(random, WEB)
        image[:] = scene.image
        captions = write_captions(scene, random, CAPTIONS)
        texts.append({"captions": captions, "details": _details(scene, other)})
    np.save(_path(folder, number, "npy"), images)
    # written last: it says that the chunk is complete
    write_text(_path(folder, number, "json"), json.dumps(texts))


def _details(scene: Scene, random: np.random.Generator) -> list[dict[str, Any]]:
    things = [
        {
            "box": [min(SIDE, max(0, round(side))) for side in placed.box],
            "captions": write_captions(replace(scene, things=(placed,)), random, DETAIL_CAPTIONS),
            "thing": True,
        }
        for placed in scene.things
    ]
    parts = [(stuff, _part(scene.ids == number, random)) for number, stuff in scene.stuff]
    return things + [
        {"box": box, "captions": write_names(stuff, random, DETAIL_CAPTIONS), "thing": False}
        for stuff, box in parts
        if box
    ]


def _part(mask: NDArray[np.bool_], random: np.random.Generator) -> list[int] | None:
    """The largest of some random boxes that hold little else than the mask."""
    boxes = []
    for _ in range(_TRIES):
        width, height = (int(side) for side in random.integers(*_PART, size=2))
        left, top = int(random.integers(SIDE - width + 1)), int(random.integers(SIDE - height + 1))
        if mask[top : top + height, left : left + width].mean() >= _PURE:
            boxes.append([left, top, left + width, top + height])
    return max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=None)
