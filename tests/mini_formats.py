"""Miniature data sets in the formats of labelling tools, with the masks that their labels mean."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from mini_benchmarks import SIZES, jpeg, png
from PIL import Image

CAT = [[2, 2], [30, 2], [30, 28], [2, 28]]
DOG = [[20, 20], [38, 20], [38, 36], [20, 36]]
GRASS = [[0, 10], [40, 10], [40, 40], [0, 40]]


def shape(label: str, points: list[list[float]], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def labelme_file(path: Path, image: str, size: tuple[int, int], shapes: list[Any]) -> None:
    """A JSON file as Labelme writes it."""
    height, width = size
    data = {"version": "5.5.0", "flags": {}, "imagePath": image, "imageData": None}
    path.write_text(json.dumps(data | {"shapes": shapes, "imageHeight": height, "imageWidth": width}))


def labelme(root: Path) -> None:
    """Three pictures in two folders: a cat with a dog before it, each."""
    random = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        folder = root / ("day", "night", "night")[number]
        jpeg(random, size, folder / f"{number}.jpg")
        shapes = [shape("cat", CAT), shape("dog", DOG)]
        labelme_file(folder / f"{number}.json", f"{number}.jpg", size, shapes)


def mask_shape(label: str, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """A shape that Labelme's assistant paints: a mask of a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    buffer = io.BytesIO()
    Image.fromarray(np.full((bottom - top + 1, right - left + 1), 255, np.uint8)).save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return shape(label, [[left, top], [right, bottom]], "mask", mask=content)


def yolo(root: Path, layout: str = "images/{split}", split: str = "train") -> None:
    """The same pictures in YOLO's layout; the last one has no objects."""
    random = np.random.default_rng(0)
    images = root / layout.format(split=split)
    labels = root / layout.format(split=split).replace("images", "labels")
    labels.mkdir(parents=True)
    for number, (height, width) in enumerate(SIZES):
        jpeg(random, (height, width), images / f"{number}.jpg")
        lines = [
            " ".join(map(str, [kind, *(np.array(points) / [width, height]).ravel().tolist()]))
            for kind, points in ((0, CAT), (2, DOG))
        ]
        if number < 2:
            (labels / f"{number}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: cat\n  2: dog\n")


def class_and_instance_maps() -> tuple[np.ndarray, np.ndarray]:
    """Values 40 x 56: 0 sky, 1 cat (numbers 1 and 2, and one without), 2 dog (number 1), 255 void."""
    classes, instances = np.zeros((40, 56), int), np.zeros((40, 56), int)
    for value, number, left in ((1, 1, 2), (1, 2, 12), (1, 0, 22), (2, 1, 32)):
        classes[10:30, left : left + 8] = value
        instances[10:30, left : left + 8] = number
    classes[35:] = 255
    instances[35:] = 255
    return classes, instances


def maps(root: Path, split: str = "", void: int = 255) -> None:
    """Pictures with class maps and instance maps."""
    classes, instances = class_and_instance_maps()
    for number in range(3):
        jpeg(np.random.default_rng(number), classes.shape, root / "images" / split / f"a.{number}.jpeg")
        png(np.where(classes == 255, void, classes), root / "labels" / split / f"a.{number}.png")
        png(instances, root / "instances" / split / f"a.{number}.png", palette=True)
    (root / "classes.txt").write_text("sky,clouds:stuff\ncat\n\ndog,puppy\n")


def voc_objects(root: Path) -> None:
    """Pascal VOC's layout, with the values of VOC's class maps: background, bird (3), cat (8)."""
    classes, instances = class_and_instance_maps()
    folder = root / "VOCdevkit" / "VOC2012"
    values = np.select([classes == 1, classes == 2, classes == 255], [3, 8, 255], 0)
    for name in ("2007_000001", "2007_000002"):
        jpeg(np.random.default_rng(0), classes.shape, folder / "JPEGImages" / f"{name}.jpg")
        png(values, folder / "SegmentationClass" / f"{name}.png", palette=True)
        png(instances, folder / "SegmentationObject" / f"{name}.png", palette=True)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000001\n2007_000002\n")


def cityscapes(root: Path, split: str = "val") -> None:
    """gtFine: sky (23), persons (24) with numbers and a group, a car (26), dynamic (5), the own car (1)."""
    classes, instances = class_and_instance_maps()
    labels = np.select([classes == 1, classes == 2, classes == 255], [24, 26, 1], 23)
    labels[:3] = 5
    ids = np.where((instances > 0) & (instances < 255), labels * 1000 + instances - 1, labels)
    for city, number in (("aachen", 0), ("bonn", 1)):
        name = f"{city}_00000{number}_000019"
        image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
        png(np.full((*labels.shape, 3), 90), image)
        folder = root / "gtFine" / split / city
        png(labels, folder / f"{name}_gtFine_labelIds.png")
        Image.fromarray(ids.astype(np.uint16)).save(folder / f"{name}_gtFine_instanceIds.png")
        png(np.zeros((*labels.shape, 4)), folder / f"{name}_gtFine_color.png")
