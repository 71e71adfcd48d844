"""ADE20K: the 150 classes of SceneParse150 with objects, and the 847 classes of the full data set.

Zhou et al., CVPR 2017. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from odise_pl.data.prepare.conversion import (
    Conversion,
    Ids,
    Labels,
    blame_file,
    class_table,
    look_up,
    read_pixels,
)
from odise_pl.data.prepare.listing import Benchmark
from odise_pl.data.prepare.source import Source, SourceSample
from odise_pl.data.prepare.tree import Tree
from odise_pl.data.records import DataError
from odise_pl.vocabulary import MEASURES, Vocabulary, load_vocabulary

_SCENE_PARSING = (
    "download ADEChallengeData2016.zip and annotations_instance.tar from http://sceneparsing.csail.mit.edu, "
    "see data/README.md"
)
_FULL = (
    "download ADE20K_2021_17_01 from https://groups.csail.mit.edu/vision/datasets/ADE20K, see data/README.md"
)
_CLASS = re.compile(r"^(\d+) *\t(?:.*\t)?(.*)$", re.MULTILINE)  # in objectInfo150.txt: number and names
_SHORT_SIDE = 512  # for the full data set, which has large photographs


def read_ade150(root: Path | Sequence[Path], split: str = "validation") -> Source:
    """Read a split with panoptic truth: stuff from ``annotations``, things from ``annotations_instance``.

    Raises:
        DataError: a part is missing, or the classes have other numbers.
    """
    tree = Tree(root, _SCENE_PARSING)
    images = tree.need_folder(f"images/{split}", "ADEChallengeData2016.zip")
    semantic = tree.need_folder(f"annotations/{split}", "ADEChallengeData2016.zip")
    objects = tree.need_folder(f"annotations_instance/{split}", "annotations_instance.tar")
    vocabulary = load_vocabulary("ade20k_150")
    _check_classes(tree, vocabulary)
    classes = class_table({category.id + 1: i for i, category in enumerate(vocabulary.categories)}, [0])
    conversion = Conversion(
        partial(_read_objects, classes=classes, isthing=vocabulary.isthing), vocabulary.isthing
    )
    labels = (semantic, objects)
    return Benchmark("ade150", split, vocabulary, conversion, images, labels, ".png", MEASURES).from_folder()


def _check_classes(tree: Tree, vocabulary: Vocabulary) -> None:
    """Raise DataError if the data set lists classes that differ from the vocabulary."""
    file = tree.file("objectInfo150.txt")
    if file is None:
        return
    known = {category.id: category.names for category in vocabulary.categories}
    for number, names in _CLASS.findall(file.read_text()):
        ours = known.get(int(number) - 1, ())
        words = set(names.casefold().replace(",", " ").split())  # "pool" is listed as "swimming pool"
        if not any(words.issuperset(name.casefold().split()) for name in ours):
            raise DataError(
                f"{file.path}: class {number} is '{names.strip()}', and '{', '.join(ours)}' in the "
                f"vocabulary {vocabulary.name}: these are not the label maps of SceneParse150"
            )


def _read_objects(sample: SourceSample, classes: Ids, isthing: tuple[bool, ...]) -> Labels:
    semantic, objects = sample.labels
    with blame_file(semantic):
        stuff = look_up(read_pixels(semantic, 1), classes)
    # the 100 object classes have the order of the things among the 150
    things = class_table(dict(enumerate(np.flatnonzero(isthing).tolist(), start=1)), [0])
    with blame_file(objects):
        pixels = read_pixels(objects, 2)
        if pixels.shape[:2] != stuff.shape:
            height, width = pixels.shape[:2]
            raise DataError(f"has {width}x{height} pixels, unlike {semantic.display_name}")
        index, number = look_up(pixels[..., 0], things), pixels[..., 1]
    return Labels(stuff, np.where((index >= 0) & (number > 0), index + 1 + 256 * number, 0).astype(np.int32))


def read_ade847(root: Path | Sequence[Path], split: str = "validation") -> Source:
    """Read a split with its 847 most frequent classes, others void, scaled to a shorter side of at most 512.

    Raises:
        DataError: a part is missing.
    """
    folder = Tree(root, _FULL).need_folder(f"images/ADE/{split}", "ADE20K_2021_17_01.zip")
    vocabulary = load_vocabulary("ade20k_847")
    rare = range(26 * 256)  # all values of R // 10 * 256 + G
    classes = class_table({category.id: i for i, category in enumerate(vocabulary.categories)}, rare)
    conversion = Conversion(partial(_read_full, classes=classes), vocabulary.isthing, _SHORT_SIDE)
    return Benchmark("ade847", split, vocabulary, conversion, folder, (folder,), "_seg.png").from_folder()


def _read_full(sample: SourceSample, classes: Ids) -> Labels:
    (file,) = sample.labels
    with blame_file(file):
        pixels = read_pixels(file, 3)
        return Labels(look_up(pixels[..., 0] // 10 * 256 + pixels[..., 1], classes))
