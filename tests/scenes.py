"""Generated scenes in the COCO panoptic layout that a small model can learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from odise_pl.data.label_maps import encode_ids

CATEGORIES = [
    {"id": 1, "name": "ball", "isthing": 1},
    {"id": 3, "name": "box", "isthing": 1},
    {"id": 90, "name": "sky", "isthing": 0},
    {"id": 91, "name": "field", "isthing": 0},
]
COLOURS = {1: (220, 60, 50), 3: (60, 60, 210), 90: (150, 200, 240), 91: (70, 160, 60)}


CAPTIONS = (
    "Two red balls and a blue box are under a bright sky.",
    "A blue box lies on a green field near a red ball.",
)


def make_scenes(
    root: Path,
    count: int,
    split: str = "train2017",
    size: int = 64,
    seed: int = 0,
    captions: Sequence[Sequence[str]] = (),
) -> Path:
    """Sky over a field with two balls and a box, ``size`` pixels square, annotated; returns ``root``.

    ``captions[i]`` are the captions of image ``i``; other images have none.
    """
    random = np.random.default_rng(seed)
    folders = [root / split, root / "annotations" / f"panoptic_{split}"]
    for folder in folders:
        folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        picture, ids, segments = _scene(random, size)
        picture.save(folders[0] / f"{number:06d}.jpg", quality=92)
        (folders[1] / f"{number:06d}.png").write_bytes(encode_ids(ids))
        images.append({"id": number, "file_name": f"{number:06d}.jpg", "height": size, "width": size})
        annotations.append({"image_id": number, "file_name": f"{number:06d}.png", "segments_info": segments})
    data = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(data))
    written = [
        {"id": 10 * number + i, "image_id": number, "caption": caption}
        for number, some in enumerate(captions, start=1)
        for i, caption in enumerate(some)
    ]
    if written:
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps({"annotations": written}))
    return root


def _scene(random: np.random.Generator, size: int) -> tuple[Image.Image, np.ndarray, list[dict[str, Any]]]:
    picture, plan = Image.new("RGB", (size, size)), Image.new("I", (size, size))
    segments: list[dict[str, Any]] = []

    def draw(category: int, shape: str, bounds: tuple[int, int, int, int]) -> None:
        segments.append({"id": len(segments) + 1, "category_id": category, "iscrowd": 0})
        getattr(ImageDraw.Draw(picture), shape)(bounds, fill=COLOURS[category])
        getattr(ImageDraw.Draw(plan), shape)(bounds, fill=len(segments))

    horizon = int(size * random.uniform(0.35, 0.6))
    draw(90, "rectangle", (0, 0, size, horizon))
    draw(91, "rectangle", (0, horizon, size, size))
    # ball, box and ball in a third of the width each, so that they do not overlap
    for column, (category, shape) in enumerate([(1, "ellipse"), (3, "rectangle"), (1, "ellipse")]):
        side = int(size * random.uniform(0.2, 0.3))
        left = size * column // 3 + int(random.integers(0, max(1, size // 3 - side)))
        top = int(random.integers(0, size - side))
        draw(category, shape, (left, top, left + side, top + side))
    ids = np.asarray(plan).astype(np.int64)
    for segment in segments:
        rows, columns = np.nonzero(ids == segment["id"])
        left, top = int(columns.min()), int(rows.min())
        width, height = int(columns.max()) - left + 1, int(rows.max()) - top + 1
        segment |= {"area": len(rows), "bbox": [left, top, width, height]}
    return picture, ids, segments
