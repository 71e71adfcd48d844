"""Miniature data sets in the COCO panoptic layout, made with PIL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odise_pl.data.label_maps import encode_ids
from odise_pl.data.manifest import Manifest
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare

CATEGORIES = [
    {"id": 1, "name": "square", "isthing": 1},
    {"id": 7, "name": "disc", "isthing": 1},
    {"id": 90, "name": "ground", "isthing": 0},
]


@dataclass
class MiniCoco:
    """A split on disk; change ``annotation`` and call ``save``."""

    root: Path
    split: str
    annotation: dict[str, Any]
    captions: dict[str, Any]

    @property
    def images(self) -> Path:
        return self.root / self.split

    @property
    def pngs(self) -> Path:
        return self.root / "annotations" / f"panoptic_{self.split}"

    @property
    def json(self) -> Path:
        return self.root / "annotations" / f"panoptic_{self.split}.json"

    def save(self) -> None:
        self.json.write_text(json.dumps(self.annotation))
        (self.root / "annotations" / f"captions_{self.split}.json").write_text(json.dumps(self.captions))


def make_coco(root: Path, count: int = 6, split: str = "train2017", seed: int = 0) -> MiniCoco:
    """``count`` images of noise, annotated with a square, a crowd of discs, ground, and a strip of void."""
    random = np.random.default_rng(seed)
    coco = MiniCoco(
        root, split, {"images": [], "annotations": [], "categories": CATEGORIES}, {"annotations": []}
    )
    coco.images.mkdir(parents=True)
    coco.pngs.mkdir(parents=True)
    for number in range(1, count + 1):
        height, width = int(random.integers(40, 64)), int(random.integers(40, 64))
        name = f"{number:012d}"
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(coco.images / f"{name}.jpg", quality=70)
        ids, segments = _segments(height, width, random)
        (coco.pngs / f"{name}.png").write_bytes(encode_ids(ids))
        image = {"id": number, "file_name": f"{name}.jpg", "height": height, "width": width}
        coco.annotation["images"].append(image)
        coco.annotation["annotations"].append(
            {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        )
        coco.captions["annotations"] += [
            {"id": 2 * number + i, "image_id": number, "caption": f"caption {i} of image {number}"}
            for i in (0, 1)
        ]
    coco.save()
    return coco


def _segments(
    height: int, width: int, random: np.random.Generator
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    ids = np.zeros((height, width), dtype=np.int64)
    square, crowd, ground = (int(i) for i in random.choice(2**24 - 1, 3, replace=False) + 1)
    ids[5:] = ground
    ids[8:20, 10:30] = square
    ids[25:35, 3:12] = crowd
    segments = []
    for number, category, iscrowd in ((square, 1, 0), (crowd, 7, 1), (ground, 90, 0)):
        segment = {"id": number, "category_id": category, "iscrowd": iscrowd, "bbox": [3, 5, 27, 30]}
        segments.append(segment | {"area": int((ids == number).sum())})
    return ids, segments


def beside(coco: MiniCoco, name: str, categories: object, **content: object) -> Path:
    """Write a file of objects or captions with an object of category 41 in image 1."""
    box = {"bbox": [10, 8, 20, 12], "area": 240, "segmentation": [[10, 8, 30, 8, 30, 20, 10, 20]]}
    one = {"id": 1, "image_id": 1, "category_id": 41, "iscrowd": 0, **box}
    images = coco.annotation["images"]
    data = {"images": images, "annotations": [one], "categories": categories, **content}
    path = coco.root / "annotations" / f"{name}_{coco.split}.json"
    path.write_text(json.dumps(data))
    return path


def pack(root: Path, out: Path, split: str = "train2017", **options: Any) -> Manifest:
    """Prepare a split in this process."""
    return prepare(read_coco(root, split), out, **options)
