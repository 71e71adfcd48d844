"""Paint the small world's data sets.

``toy_train`` and ``toy_val`` have only the base categories. ``toy_open`` has all of them and looks different,
as ADE20K does from COCO. They are painted in COCO's panoptic layout and then packed. Imports no torch.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odise_pl.data.label_maps import encode_ids
from odise_pl.data.manifest import FILE_NAME, find_missing_shards, open_shard_set
from odise_pl.data.prepare import processes
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from odise_pl.data.records import DataError
from odise_pl.toyworld.captions import write_captions
from odise_pl.toyworld.scene import Scene, paint_scene
from odise_pl.toyworld.stuff import STUFF, Stuff
from odise_pl.toyworld.style import OPEN, PLAIN, Style
from odise_pl.toyworld.things import THINGS, Thing
from odise_pl.vocabulary import Category, Vocabulary

_CHUNK = 100  # pictures that a process paints at a time
_CAPTIONS = 3
_SHARD_BYTES = 8 * 10**6
KINDS: tuple[Thing | Stuff, ...] = (*THINGS, *STUFF)
_IDS = {kind.name: number for number, kind in enumerate(KINDS, start=1)}


@dataclass(frozen=True)
class ToySet:
    """One data set.

    Attributes:
        name: without ``toy_``.
        number: part of the seed.
        count: number of pictures.
        style: of the pictures.
        novel: whether novel categories may occur.
    """

    name: str
    number: int
    count: int
    style: Style
    novel: bool


def toy_sets(train: int = 2000, val: int = 200, open_: int = 200) -> tuple[ToySet, ...]:
    """The three sets, with their numbers of pictures."""
    return (
        ToySet("train", 0, train, PLAIN, novel=False),
        ToySet("val", 1, val, PLAIN, novel=False),
        ToySet("open", 2, open_, OPEN, novel=True),
    )


def vocabulary(novel: bool) -> Vocabulary:
    """The base categories, or all of them with ``novel``; ids start at 1, things first."""
    categories = tuple(
        Category(_IDS[kind.name], kind.name, kind.synonyms, kind in THINGS)
        for kind in KINDS
        if novel or not kind.novel
    )
    return Vocabulary("toy" if novel else "toy_base", categories)


def make(toy_set: ToySet, folder: Path, seed: int = 0, workers: int = 1) -> Path:
    """Paint one set and pack it into ``folder/toy_NAME``, unless it exists. Returns that folder.

    An interrupted run leaves no files.

    Raises:
        DataError: the folder contains another set, a damaged one, or other files.
    """
    out, origin = folder / f"toy_{toy_set.name}", f"odise_pl.toyworld, seed {seed}"
    if not (out / FILE_NAME).exists():
        if out.exists():
            raise DataError(f"{out} exists, but is not a data set: delete it, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{out.name}_") as name:
            _pack(toy_set, Path(name), origin, seed, workers).rename(out)
    _check(out, toy_set.count, origin)
    return out


def _pack(toy_set: ToySet, root: Path, origin: str, seed: int, workers: int) -> Path:
    """Paint a set and pack it in a temporary folder."""
    coco, shards = root / "coco", root / "shards"
    _paint(toy_set, coco, seed, workers)
    source = read_coco(coco, toy_set.name, "annotation")
    made = replace(source.origin, dataset="toy", annotations=origin)
    source = replace(source, origin=made, vocabulary=vocabulary(toy_set.novel))
    prepare(source, shards, workers, _SHARD_BYTES, skip_bad=False)
    return shards


def _check(out: Path, count: int, origin: str) -> None:
    """Raise DataError if a set is another one or damaged."""
    shards = open_shard_set(out)
    found = f"{shards.manifest.counts.samples} pictures, made from {shards.manifest.source.annotations}"
    wanted = f"{count} pictures, made from {origin}"
    if found != wanted:
        raise DataError(f"{out} contains {found}, instead of {wanted}: delete it, or choose another folder")
    if missing := find_missing_shards(shards):
        raise DataError(f"{missing[0]} is missing or damaged: delete {out} to paint it again")


def _paint(toy_set: ToySet, root: Path, seed: int, workers: int) -> None:
    """Write the set in COCO's panoptic layout."""
    for folder in (root / toy_set.name, root / "annotations" / f"panoptic_{toy_set.name}"):
        folder.mkdir(parents=True)
    paint = partial(_paint_one, toy_set, root, seed)
    painted = processes.run(paint, range(toy_set.count), workers, f"painting {toy_set.name}", _CHUNK)
    images, annotations, captions = zip(*painted, strict=True)
    categories = vocabulary(toy_set.novel).to_json()["categories"]
    panoptic = {"images": images, "annotations": annotations, "categories": categories}
    _write(root, f"panoptic_{toy_set.name}", panoptic)
    _write(root, f"captions_{toy_set.name}", {"annotations": [one for some in captions for one in some]})


def _write(root: Path, name: str, data: Any) -> None:
    (root / "annotations" / f"{name}.json").write_text(json.dumps(data))


def _paint_one(toy_set: ToySet, root: Path, seed: int, number: int) -> tuple[Any, Any, Any]:
    """Write a picture and its map; returns its image, annotation and caption entries."""
    random = np.random.default_rng([seed, toy_set.number, number])
    scene = paint_scene(random, toy_set.style, toy_set.novel)
    name, height, width = f"{number:06d}", *scene.ids.shape
    Image.fromarray(scene.image).save(root / toy_set.name / f"{name}.jpg", quality=93, subsampling=0)
    png = root / "annotations" / f"panoptic_{toy_set.name}" / f"{name}.png"
    png.write_bytes(encode_ids(scene.ids))
    image = {"id": number, "file_name": f"{name}.jpg", "height": height, "width": width}
    annotation = {"image_id": number, "file_name": f"{name}.png", "segments_info": _segments(scene)}
    captions = [
        {"id": _CAPTIONS * number + i, "image_id": number, "caption": text}
        for i, text in enumerate(write_captions(scene, random, _CAPTIONS))
    ]
    return image, annotation, captions


def _segments(scene: Scene) -> list[dict[str, Any]]:
    named = [(number, stuff.name) for number, stuff in scene.stuff]
    named += [(placed.id, placed.thing.name) for placed in scene.things]
    return [
        {"id": number, "category_id": _IDS[name], "iscrowd": 0, **_extent(scene, number)}
        for number, name in named
    ]


def _extent(scene: Scene, number: int) -> dict[str, Any]:
    rows, columns = np.nonzero(scene.ids == number)
    left, top = int(columns.min()), int(rows.min())
    box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    return {"area": len(rows), "bbox": box}
