"""PASCAL-Context (59 and 459 classes) and Pascal VOC 2012 (21 classes). Imports no torch.

Mottaghi et al., CVPR 2014; Everingham et al., IJCV 2010.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from odise_pl.data.prepare.conversion import (
    Conversion,
    FileFault,
    Ids,
    Labels,
    class_table,
    look_up,
    read_grey,
)
from odise_pl.data.prepare.listing import listed_source
from odise_pl.data.prepare.tree import Tree, add_root
from odise_pl.data.prepare.validate import read_file
from odise_pl.data.records import DataError, Source, SourceSample
from odise_pl.vocabulary import load_vocabulary

SPLITS = ("train", "val", "trainval")
_CONTEXT = (
    "download VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010 and "
    "trainval.tar.gz from https://cs.stanford.edu/~roozbeh/pascal-context, see data/README.md"
)
_VOC = (
    "download VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012, "
    "see data/README.md"
)
# The 59 classes among the 459: label values in ascending order, which is that of the packaged vocabulary.
CONTEXT_59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144,
    158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355,
    360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``pc59``, ``pc459`` and ``pas21`` to the prepare command."""
    context = "VOC2010 images and the label maps of trainval.tar.gz"
    for name, read, what in (
        ("pc59", partial(read_context, classes=59), f"PASCAL-Context, 59 classes: {context}"),
        ("pc459", partial(read_context, classes=459), f"PASCAL-Context, 459 classes: {context}"),
        ("pas21", read_voc, "Pascal VOC, 20 classes and background: VOC2012"),
    ):
        parser = commands.add_parser(name, help=what)
        add_root(parser)
        parser.add_argument("--split", choices=SPLITS, default="val", help="default: val")
        parser.set_defaults(read=lambda options, read=read: read(options.root, options.split))


def read_context(root: Path | Sequence[Path], split: str = "val", classes: int = 459) -> Source:
    """A split of VOC 2010 with the label maps of PASCAL-Context; of 59 classes the rest is void.

    Raises:
        DataError: a part is missing.
    """
    tree, archive = Tree(root, _CONTEXT), "VOCtrainval_03-May-2010.tar"
    vocabulary = load_vocabulary(f"pascal_context_{classes}")
    values = CONTEXT_59 if classes == 59 else [category.id for category in vocabulary.categories]
    table = class_table({value: index for index, value in enumerate(values)}, range(460))
    return listed_source(
        (f"pc{classes}", split),
        tree.need_file(f"VOC2010/ImageSets/Main/{split}.txt", archive),
        tree.need_folder("VOC2010/JPEGImages", archive),
        tree.need_folder("trainval", "trainval.tar.gz"),
        ".mat",
        vocabulary,
        Conversion(partial(_read_label_map, classes=table), vocabulary.isthing),
    )


def _read_label_map(sample: SourceSample, classes: Ids) -> Labels:
    (file,) = sample.labels
    try:
        values = loadmat(io.BytesIO(read_file(file)))["LabelMap"]
    except DataError as error:
        raise FileFault(file, str(error)) from error
    except Exception as error:  # a damaged file makes the reader raise almost anything
        raise FileFault(file, f"is no MATLAB file with a LabelMap ({error})") from error
    if values.ndim != 2:
        raise FileFault(file, f"has a LabelMap of {values.ndim} dimensions, expected 2")
    return Labels(look_up(values.astype(np.int32), classes, file))


def read_voc(root: Path | Sequence[Path], split: str = "val") -> Source:
    """A split of VOC 2012's segmentation task; the borders of objects (255) are void.

    Raises:
        DataError: a part is missing.
    """
    tree, archive = Tree(root, _VOC), "VOCtrainval_11-May-2012.tar"
    vocabulary = load_vocabulary("pascal_voc_21")
    table = class_table({category.id: index for index, category in enumerate(vocabulary.categories)}, [255])
    return listed_source(
        ("pas21", split),
        tree.need_file(f"VOC2012/ImageSets/Segmentation/{split}.txt", archive),
        tree.need_folder("VOC2012/JPEGImages", archive),
        tree.need_folder("VOC2012/SegmentationClass", archive),
        ".png",
        vocabulary,
        Conversion(partial(_read_class_image, classes=table), vocabulary.isthing),
    )


def _read_class_image(sample: SourceSample, classes: Ids) -> Labels:
    (file,) = sample.labels
    return Labels(look_up(read_grey(file), classes, file))
