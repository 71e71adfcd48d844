"""ADE20K: the 150 classes of SceneParse150 with objects, and the 847 classes of the full data set.

Zhou et al., CVPR 2017. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from odise_pl.data.prepare.conversion import (
    Conversion,
    Ids,
    class_table,
    decode_classes,
    decode_pixels,
    look_up,
)
from odise_pl.data.prepare.listing import LabelFileSet
from odise_pl.data.prepare.source import Source
from odise_pl.data.prepare.tree import Tree
from odise_pl.vocabulary import MEASURES, load_vocabulary

_SCENE_PARSING = (
    "download ADEChallengeData2016.zip, and annotations_instance.tar, which must be unpacked, from "
    "http://sceneparsing.csail.mit.edu, see docs/data.md"
)
_FULL = (
    "download ADE20K_2021_17_01 from https://groups.csail.mit.edu/vision/datasets/ADE20K, see docs/data.md"
)
_SHORT_SIDE = 512  # for the full data set, which has large photographs


def read_ade150(root: Path | Sequence[Path], split: str = "validation") -> Source:
    """Read a split with panoptic truth: stuff from ``annotations``, things from ``annotations_instance``.

    Raises:
        DataError: a part is missing.
    """
    tree = Tree(root, _SCENE_PARSING)
    images = tree.need(f"images/{split}", "ADEChallengeData2016.zip")
    semantic = tree.need(f"annotations/{split}", "ADEChallengeData2016.zip")
    objects = tree.need(f"annotations_instance/{split}", "annotations_instance.tar")
    vocabulary = load_vocabulary("ade20k_150")
    classes = class_table({category.id + 1: i for i, category in enumerate(vocabulary.categories)}, [0])
    # the 100 object classes have the order of the things among the 150
    things = class_table(dict(enumerate(np.flatnonzero(vocabulary.isthing).tolist(), start=1)), [0])
    conversion = Conversion(
        vocabulary.isthing, partial(decode_classes, table=classes), partial(_decode_objects, table=things)
    )
    labels = (semantic, objects)
    return LabelFileSet(
        "ade150", split, vocabulary, conversion, images, labels, (".png", ".png"), MEASURES
    ).from_folder()


def _decode_objects(content: bytes, table: Ids) -> Ids:
    pixels = decode_pixels(content, 2)
    index, number = look_up(pixels[..., 0], table), pixels[..., 1]
    return np.where((index >= 0) & (number > 0), index + 1 + 256 * number, 0).astype(np.int32)


def read_ade847(root: Path | Sequence[Path], split: str = "validation") -> Source:
    """Read a split with its 847 most frequent classes, others void, scaled to a shorter side of at most 512.

    Raises:
        DataError: a part is missing.
    """
    folder = Tree(root, _FULL).need(f"images/ADE/{split}", "ADE20K_2021_17_01.zip")
    vocabulary = load_vocabulary("ade20k_847")
    rare = range(26 * 256)  # all values of R // 10 * 256 + G
    classes = class_table({category.id: i for i, category in enumerate(vocabulary.categories)}, rare)
    decode = partial(_decode_full, table=classes)
    conversion = Conversion(vocabulary.isthing, decode, short_side=_SHORT_SIDE)
    return LabelFileSet(
        "ade847", split, vocabulary, conversion, folder, (folder,), ("_seg.png",)
    ).from_folder()


def _decode_full(content: bytes, table: Ids) -> Ids:
    pixels = decode_pixels(content, 3)
    return look_up(pixels[..., 0] // 10 * 256 + pixels[..., 1], table)
