"""Cityscapes, Cordts et al., CVPR 2016: the 19 classes of its benchmark. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from odise_pl.data.prepare.conversion import Conversion, Ids, class_table, decode_classes, decode_pixels
from odise_pl.data.prepare.listing import LabelFileSet
from odise_pl.data.prepare.source import Source
from odise_pl.data.prepare.tree import Tree
from odise_pl.vocabulary import MEASURES, load_vocabulary

_HINT = "get it from https://www.cityscapes-dataset.com/downloads (registration), see docs/data.md"
_IMAGE = "_leftimg8bit.png"  # in small letters
_LABELS = ("_gtFine_labelIds.png", "_gtFine_instanceIds.png")
_FIRST_OBJECT = 1000  # instanceIds are 1000 * label id + number, or the label id alone: stuff, and groups


def read_cityscapes(root: Path | Sequence[Path], split: str = "val") -> Source:
    """Read a split with panoptic truth; classes outside the benchmark are void, groups of objects crowds.

    Raises:
        DataError: a part is missing.
    """
    tree = Tree(root, _HINT)
    images = tree.need(f"leftImg8bit/{split}", "leftImg8bit_trainvaltest.zip")
    labels = tree.need(f"gtFine/{split}", "gtFine_trainvaltest.zip")
    vocabulary = load_vocabulary("cityscapes_19")
    table = class_table({category.id: i for i, category in enumerate(vocabulary.categories)}, range(256))
    decode = partial(decode_classes, table=table)
    return LabelFileSet(
        "cityscapes",
        split,
        vocabulary,
        Conversion(vocabulary.isthing, decode, instances=_decode_instances),
        images,
        (labels, labels),
        _LABELS,
        MEASURES,
        (_IMAGE,),
    ).from_folder()


def _decode_instances(content: bytes) -> Ids:
    values = decode_pixels(content, 1)
    return np.where(values >= _FIRST_OBJECT, values, 0)
