"""PASCAL-Context (59 and 459 classes) and Pascal VOC 2012 (21 classes, or 20). Imports no torch.

Mottaghi et al., CVPR 2014; Everingham et al., IJCV 2010.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from odise_pl.data.prepare.conversion import Conversion, Ids, class_table, decode_classes, look_up
from odise_pl.data.prepare.listing import LabelFileSet
from odise_pl.data.prepare.source import Source
from odise_pl.data.prepare.tree import Tree
from odise_pl.data.records import DataError
from odise_pl.vocabulary import load_vocabulary

_CONTEXT = (
    "download and unpack VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010 and "
    "trainval.tar.gz from https://cs.stanford.edu/~roozbeh/pascal-context, see docs/data.md"
)
_VOC = (
    "download and unpack VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012, "
    "see docs/data.md"
)
# Label values of the 59 classes among the 459, in the order of the packaged vocabulary.
CONTEXT_59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144,
    158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355,
    360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip


def read_context(root: Path | Sequence[Path], split: str = "val", classes: int = 459) -> Source:
    """Read a split of VOC 2010 with the label maps of PASCAL-Context; other classes are void.

    Raises:
        DataError: a part is missing.
    """
    tree, archive = Tree(root, _CONTEXT), "VOCtrainval_03-May-2010.tar"
    vocabulary = load_vocabulary(f"pascal_context_{classes}")
    values = CONTEXT_59 if classes == 59 else [category.id for category in vocabulary.categories]
    table = class_table({value: index for index, value in enumerate(values)}, range(460))
    conversion = Conversion(vocabulary.isthing, partial(_decode_label_map, table=table))
    listed = tree.need(f"VOC2010/ImageSets/Main/{split}.txt", archive)
    images = tree.need("VOC2010/JPEGImages", archive)
    labels = tree.need("trainval", "trainval.tar.gz")
    return LabelFileSet(
        f"pc{classes}", split, vocabulary, conversion, images, (labels,), (".mat",)
    ).from_list(listed)


def _decode_label_map(content: bytes, table: Ids) -> Ids:
    try:
        values = loadmat(io.BytesIO(content))["LabelMap"]
    except Exception as error:  # a damaged file makes the reader raise almost anything
        raise DataError(f"is not a MATLAB file with a LabelMap ({error})") from error
    if values.ndim != 2:
        raise DataError(f"has a LabelMap of {values.ndim} dimensions, expected 2")
    return look_up(values.astype(np.int32), table)


def read_voc(root: Path | Sequence[Path], split: str = "val", classes: int = 21) -> Source:
    """Read a split of VOC 2012's segmentation task; the borders of objects (255) are void.

    Of 20 classes, so is the background (0).

    Raises:
        DataError: a part is missing.
    """
    tree, archive = Tree(root, _VOC), "VOCtrainval_11-May-2012.tar"
    vocabulary = load_vocabulary(f"pascal_voc_{classes}")
    indices = {category.id: index for index, category in enumerate(vocabulary.categories)}
    table = class_table(indices, (0, 255))
    conversion = Conversion(vocabulary.isthing, partial(decode_classes, table=table))
    listed = tree.need(f"VOC2012/ImageSets/Segmentation/{split}.txt", archive)
    images = tree.need("VOC2012/JPEGImages", archive)
    labels = tree.need("VOC2012/SegmentationClass", archive)
    return LabelFileSet(
        f"pas{classes}", split, vocabulary, conversion, images, (labels,), (".png",)
    ).from_list(listed)
