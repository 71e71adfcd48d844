"""Paint the small world's data sets: ``python -m odise_pl.toyworld.make --out data/shards``.

``toy_train`` and ``toy_val`` hold the base categories alone; ``toy_open`` holds all and looks different: what
ADE20K is to COCO. They are written in COCO's panoptic layout and packed as any data set of that layout is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odise_pl.arguments import ends_with_message, not_negative, positive
from odise_pl.data.manifest import FILE_NAME, Manifest, ShardSet
from odise_pl.data.prepare import processes
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare, refuse_strangers, sole_writer, whole
from odise_pl.data.prepare.shards import WORK
from odise_pl.data.records import DataError
from odise_pl.toyworld.captions import write_captions
from odise_pl.toyworld.scene import Scene, World, paint_scene
from odise_pl.toyworld.stuff import STUFF, Stuff
from odise_pl.toyworld.style import OPEN, PLAIN, Style
from odise_pl.toyworld.things import THINGS, Thing
from odise_pl.vocabulary import Category, Vocabulary

KINDS: tuple[Thing | Stuff, ...] = (*THINGS, *STUFF)
_CHUNK = 100  # pictures that a process paints at a time
_CAPTIONS = 3
_MEGABYTE = 10**6


@dataclass(frozen=True)
class ToySet:
    """One data set: its name without ``toy_``, its number among them, pictures, style and categories."""

    name: str
    number: int
    count: int
    style: Style
    novel: bool

    @property
    def world(self) -> World:
        """The categories that occur."""
        return World() if self.novel else World.base()


def toy_sets(train: int = 2000, val: int = 200, open_: int = 200) -> tuple[ToySet, ...]:
    """The three sets with so many pictures."""
    return (
        ToySet("train", 0, train, PLAIN, novel=False),
        ToySet("val", 1, val, PLAIN, novel=False),
        ToySet("open", 2, open_, OPEN, novel=True),
    )


def vocabulary(novel: bool) -> Vocabulary:
    """The base categories, or with ``novel`` all of them; ids count from 1, things first."""
    categories = tuple(
        Category(number, kind.name, kind.synonyms, number <= len(THINGS))
        for number, kind in enumerate(KINDS, start=1)
        if novel or not kind.novel
    )
    return Vocabulary("toy" if novel else "toy_base", categories)


def make(toy_set: ToySet, folder: Path, seed: int = 0, workers: int = 1) -> Path:
    """Paint and pack one set into ``folder/toy_NAME``; one that is there is kept. Returns its folder.

    What an interrupted run left is made anew, since that takes seconds.

    Raises:
        DataError: the folder holds something else or a damaged set, or another run is painting into it.
    """
    out, root = folder / f"toy_{toy_set.name}", folder / f".toy_{toy_set.name}"
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; --out names a folder")
    if not (out / FILE_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(folder, folder / ".toy.lock"):
            _make(toy_set, out, root, seed, workers)
    _check(out, toy_set, seed)
    return out


def _make(toy_set: ToySet, out: Path, root: Path, seed: int, workers: int) -> None:
    if (out / FILE_NAME).exists():  # by another run, while this one came to its turn
        return
    if (out / WORK).exists():
        shutil.rmtree(out)
    refuse_strangers(out)
    shutil.rmtree(root, ignore_errors=True)
    _paint(toy_set, root, seed, workers)
    source = read_coco(root, toy_set.name, "annotation")
    source = replace(
        source, dataset="toy", vocabulary=vocabulary(toy_set.novel), annotations=_annotations(seed)
    )
    prepare(source, out, workers, 8 * _MEGABYTE, skip_bad=False)
    shutil.rmtree(root)


def _annotations(seed: int) -> str:
    """What a set was made from, in ``dataset.json``."""
    return f"odise_pl.toyworld, seed {seed}"


def _check(out: Path, toy_set: ToySet, seed: int) -> None:
    """Whether a finished set is whole and the one that is asked for."""
    location = out / FILE_NAME
    manifest = Manifest.from_bytes(location.read_bytes(), str(location))
    found = f"{manifest.counts.samples} pictures, made from {manifest.source.annotations}"
    wanted = f"{toy_set.count} pictures, made from {_annotations(seed)}"
    if found != wanted:
        raise DataError(f"{out} holds {found}; asked for are {wanted}: delete it, or name another --out")
    whole(ShardSet(str(location), manifest), out)


def _paint(toy_set: ToySet, root: Path, seed: int, workers: int) -> None:
    """The set in COCO's panoptic layout."""
    for folder in (root / toy_set.name, root / "annotations" / f"panoptic_{toy_set.name}"):
        folder.mkdir(parents=True)
    starts = range(0, toy_set.count, _CHUNK)
    parts = dict(processes.run(partial(_paint_chunk, toy_set, root, seed), starts, workers))
    entries = [entry for index in sorted(parts) for entry in parts[index]]
    categories = vocabulary(toy_set.novel).to_json()["categories"]
    images, annotations, captions = ([entry[i] for entry in entries] for i in range(3))
    _write(root, f"panoptic_{toy_set.name}",
           {"images": images, "annotations": annotations, "categories": categories})  # fmt: skip
    _write(root, f"captions_{toy_set.name}", {"annotations": [one for some in captions for one in some]})


def _write(root: Path, name: str, data: Any) -> None:
    (root / "annotations" / f"{name}.json").write_text(json.dumps(data))


def _paint_chunk(toy_set: ToySet, root: Path, seed: int, start: int) -> list[tuple[Any, Any, Any]]:
    return [
        _paint_one(toy_set, root, seed, number) for number in range(start, min(start + _CHUNK, toy_set.count))
    ]


def _paint_one(toy_set: ToySet, root: Path, seed: int, number: int) -> tuple[Any, Any, Any]:
    """Write a picture and its map; returns its image, annotation and caption entries."""
    random = np.random.default_rng([seed, toy_set.number, number])
    scene = paint_scene(random, toy_set.style, toy_set.world)
    name, height, width = f"{number:06d}", *scene.ids.shape
    Image.fromarray(scene.image).save(root / toy_set.name / f"{name}.jpg", quality=93, subsampling=0)
    coded = np.stack([scene.ids % 256, scene.ids // 256, np.zeros_like(scene.ids)], -1).astype(np.uint8)
    Image.fromarray(coded).save(root / "annotations" / f"panoptic_{toy_set.name}" / f"{name}.png")
    image = {"id": number, "file_name": f"{name}.jpg", "height": height, "width": width}
    annotation = {"image_id": number, "file_name": f"{name}.png", "segments_info": _segments(scene)}
    captions = [
        {"id": _CAPTIONS * number + i, "image_id": number, "caption": text}
        for i, text in enumerate(write_captions(scene, random, _CAPTIONS))
    ]
    return image, annotation, captions


def _segments(scene: Scene) -> list[dict[str, Any]]:
    ids = {kind.name: number for number, kind in enumerate(KINDS, start=1)}
    named = [(number, stuff.name) for number, stuff in scene.stuff]
    named += [(placed.id, placed.thing.name) for placed in scene.things]
    return [
        {"id": number, "category_id": ids[name], "iscrowd": 0, **_extent(scene, number)}
        for number, name in named
    ]


def _extent(scene: Scene, number: int) -> dict[str, Any]:
    rows, columns = np.nonzero(scene.ids == number)
    left, top = int(columns.min()), int(rows.min())
    box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    return {"area": len(rows), "bbox": box}


@ends_with_message
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m odise_pl.toyworld.make", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/shards"), help="folder of the shard sets")
    parser.add_argument("--train", type=positive, default=2000, help="pictures of toy_train")
    parser.add_argument("--val", type=positive, default=200, help="pictures of toy_val")
    parser.add_argument("--open", type=positive, default=200, help="pictures of toy_open")
    parser.add_argument("--seed", type=not_negative, default=0)
    parser.add_argument("--workers", type=positive, default=2, help="processes")
    options = parser.parse_args(arguments)
    for toy_set in toy_sets(options.train, options.val, options.open):
        print(make(toy_set, options.out, options.seed, options.workers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
