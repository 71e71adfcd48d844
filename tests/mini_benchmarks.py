"""Miniature copies of the official layouts of the evaluation benchmarks, made with PIL and SciPy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from odise_pl.data.decoding import DecodedSample, decode
from odise_pl.data.label_maps import encode_ids
from odise_pl.data.manifest import open_shard_set
from odise_pl.data.reading import RawSample, read_shard
from odise_pl.vocabulary import load_vocabulary

SIZES = ((40, 56), (52, 44), (48, 48))


@dataclass
class Mini:
    """The content of the label files of a data set by image id.

    Attributes:
        classes: class index of each pixel, -1 for none.
        things: ADE20K's objects: (class index, number) of each pixel, 0 for none.
    """

    classes: dict[int, np.ndarray] = field(default_factory=dict)
    things: dict[int, np.ndarray] = field(default_factory=dict)


def blocks(random: np.random.Generator, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """A map of rectangles that has every value."""
    rows, columns = (np.arange(side) * 3 // side for side in size)
    chosen = random.permutation([*values, *random.choice(values, 9)][:9] if len(values) < 9 else values[:9])
    return np.asarray(chosen)[rows[:, None] * 3 + columns]


def jpeg(random: np.random.Generator, size: tuple[int, int], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, quality=80)


def png(pixels: np.ndarray, path: Path, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def ade150(root: Path, split: str = "validation", seed: int = 0) -> Mini:
    """``ADEChallengeData2016`` and ``annotations_instance``: label maps, and objects."""
    random, mini = np.random.default_rng(seed), Mini()
    things = [i for i, thing in enumerate(load_vocabulary("ade20k_150").isthing) if thing]
    for number, size in enumerate(SIZES, start=1):
        name = f"ADE_val_{number:08d}"
        values = blocks(random, size, [0, 1, 3, 8, 9, 150])  # 8 is a window, a thing; 150 is a thing's last
        instance = np.zeros((*size, 3), dtype=np.int64)
        for count, kind in enumerate((2, 2, 100), start=1):
            top, left = random.integers(0, 20, 2)
            instance[top : top + 15, left : left + 12] = (kind, count, 7)
        jpeg(random, size, root / "ADEChallengeData2016" / "images" / split / f"{name}.jpg")
        png(values, root / "ADEChallengeData2016" / "annotations" / split / f"{name}.png")
        png(instance, root / "annotations_instance" / split / f"{name}.png")
        mini.classes[number] = values - 1
        index = np.array([-1, *things])[instance[..., 0]]
        mini.things[number] = np.where(instance[..., :1] > 0, np.stack([index, instance[..., 1]], -1), 0)
    return mini


def ade847(root: Path, split: str = "validation", seed: int = 0, scale: int = 1) -> Mini:
    """``ADE20K_2021_17_01``, in folders of scenes; one class is not among the 847."""
    random, mini = np.random.default_rng(seed), Mini()
    vocabulary = load_vocabulary("ade20k_847")
    ids = [vocabulary.categories[i].id for i in (0, 300, 846)]
    strange = next(i for i in range(3000) if i not in {c.id for c in vocabulary.categories})
    folder = root / "ADE20K_2021_17_01" / "images" / "ADE" / split
    for number, size in enumerate(SIZES, start=1):
        size = (size[0] * scale, size[1] * scale)
        name = f"{('urban/street', 'cultural/bar', 'urban/street')[number - 1]}/ADE_val_{number:08d}"
        values = blocks(random, size, [*ids, strange])
        pixels = np.stack([values // 256 * 10 + 3, values % 256, np.full(size, 5)], -1)
        jpeg(random, size, folder / f"{name}.jpg")
        png(pixels, folder / f"{name}_seg.png")
        png(pixels, folder / f"{name}_parts_1.png")
        (folder / name).mkdir()
        png(values % 2 * 255, folder / name / "instance_000_x.png")
        mini.classes[number] = np.select([values == i for i in ids], [0, 300, 846], -1)
    return mini


VOC_NAMES = ("2007_000033", "2008_000009", "2010_000005")


def context(root: Path, split: str = "val", seed: int = 0) -> Mini:
    """VOC 2010 and PASCAL-Context's ``trainval/*.mat``; with the 459 classes."""
    random, mini = np.random.default_rng(seed), Mini()
    folder = root / "VOCdevkit" / "VOC2010"
    for name, size in zip(VOC_NAMES, SIZES, strict=True):
        values = blocks(random, size, [0, 2, 9, 258, 458, 459])
        jpeg(random, size, folder / "JPEGImages" / f"{name}.jpg")
        (root / "trainval").mkdir(exist_ok=True)
        savemat(
            root / "trainval" / f"{name}.mat", {"LabelMap": values.astype(np.uint16)}, do_compression=True
        )
        mini.classes[int(name.replace("_", ""))] = values - 1
    listing(folder / "ImageSets" / "Main" / f"{split}.txt")
    return mini


def voc(root: Path, split: str = "val", seed: int = 0) -> Mini:
    """VOC 2012: palette images with borders."""
    random, mini = np.random.default_rng(seed), Mini()
    folder = root / "VOCdevkit" / "VOC2012"
    for name, size in zip(VOC_NAMES, SIZES, strict=True):
        values = blocks(random, size, [0, 1, 15, 20, 255])
        jpeg(random, size, folder / "JPEGImages" / f"{name}.jpg")
        png(values, folder / "SegmentationClass" / f"{name}.png", palette=True)
        mini.classes[int(name.replace("_", ""))] = np.where(values == 255, -1, values)
    jpeg(random, (30, 30), folder / "JPEGImages" / "2009_000001.jpg")  # for another task
    listing(folder / "ImageSets" / "Segmentation" / f"{split}.txt")
    return mini


def listing(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(VOC_NAMES) + "\n")


def coco_instances(root: Path, split: str = "val2017", seed: int = 0) -> None:
    """COCO's instance format: polygons, run-length codes and a crowd, overlapping."""
    random = np.random.default_rng(seed)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        jpeg(random, (height, width), root / split / f"{number:012d}.jpg")
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width})
        big = [[2.0, 2.0, 30.0, 2.0, 30.0, 28.0, 2.0, 28.0]]
        small = [[20.0, 20.0, 38.0, 20.0, 38.0, 38.0, 20.0, 38.0]]
        crowd = {"size": [height, width], "counts": [5, 20, height * width - 25]}
        for category, segmentation, iscrowd, area in (
            (1, big, 0, 728),
            (90, small, 0, 324),
            (1, crowd, 1, 20),
        ):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            box = {"bbox": [0, 0, 10, 10], "area": area, "iscrowd": iscrowd, "segmentation": segmentation}
            annotations.append(annotation | box)
    categories = [{"id": 1, "name": "cat"}, {"id": 90, "name": "toothbrush"}]
    write_json(root / "annotations" / f"instances_{split}.json", images, annotations, categories)


def write_json(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def coco(root: Path, split: str = "val2017", seed: int = 0) -> None:
    """COCO panoptic with its own categories and ids of more than 16 bits."""
    random, vocabulary = np.random.default_rng(seed), load_vocabulary("coco_panoptic")
    images, annotations = [], []
    for number, size in enumerate(SIZES, start=1):
        jpeg(random, size, root / split / f"{number:012d}.jpg")
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": size[0], "width": size[1]})
        ids = {0: -1, 9_000_123: 0, 70_001: 79, 301: 100, 2: 132}
        values = blocks(random, size, list(ids))
        segments = []
        for value, index in list(ids.items())[1:]:
            category, area = vocabulary.categories[index].id, int((values == value).sum())
            segments.append(
                {"id": value, "category_id": category, "iscrowd": 0, "area": area, "bbox": [0, 0, 1, 1]}
            )
        folder = root / "annotations" / f"panoptic_{split}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:012d}.png").write_bytes(encode_ids(values))
        annotations.append({"image_id": number, "file_name": f"{number:012d}.png", "segments_info": segments})
    categories = [
        {"id": c.id, "name": c.official or c.name, "isthing": int(c.isthing)} for c in vocabulary.categories
    ]
    write_json(root / "annotations" / f"panoptic_{split}.json", images, annotations, categories)


def samples(folder: Path) -> dict[int, DecodedSample]:
    """The samples of a shard set by image id."""
    shards, found = open_shard_set(folder), {}
    for url, size in zip(shards.urls, shards.sizes, strict=True):
        for raw in read_shard(url, list(range(size))):
            assert isinstance(raw, RawSample)
            sample = decode(raw)
            found[sample.image_id] = sample
    return found
