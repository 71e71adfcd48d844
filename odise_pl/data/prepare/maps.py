"""Class maps and instance maps: folders of your own, or Pascal VOC's layout. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.prepare.conversion import Conversion, class_table, decode_classes, decode_pixels
from odise_pl.data.prepare.listing import LabelFileSet
from odise_pl.data.prepare.source import Source
from odise_pl.data.prepare.tree import Tree, parse_subpath
from odise_pl.data.records import prefix_errors
from odise_pl.vocabulary import MEASURES, Vocabulary, load_vocabulary

CLASSES = "classes.txt"
VOID = (255,)  # in class maps, by default
_HINT = "see docs/data.md for the layout"
_YOURS = "your data set"


def read_maps(
    root: Path | Sequence[Path],
    split: str | None = None,
    images: str = "images",
    labels: str = "labels",
    instances: str | None = None,
    vocabulary: str | None = None,
    void: Sequence[int] = VOID,
) -> Source:
    """Read class maps: PNG files of one channel with the names of their images.

    Args:
        root: one or more folders or zip archives.
        split: folder inside ``images``, ``labels`` and ``instances``; None: they have none.
        images: folder of the images.
        labels: folder of the class maps; their values are the ids of the vocabulary.
        instances: folder of the maps with the number of the object of each pixel, 0 for none. Without it all
            classes are stuff.
        vocabulary: anything that :func:`load_vocabulary` reads; None: the lines of ``classes.txt``.
        void: values of pixels without a class.

    Raises:
        DataError: a part is missing.
        VocabularyError: the classes cannot be read.
    """
    tree = Tree(root, _HINT)
    classes = _classes(tree) if vocabulary is None else load_vocabulary(vocabulary)
    names = [images, labels, *([] if instances is None else [instances])]
    options = ("--images", "--labels", "--instances")
    paths = [parse_subpath(option, name) for option, name in zip(options, names, strict=False)]
    end = "" if split is None else f"/{parse_subpath('--split', split)}"
    folder, *maps = (tree.need(path + end, _YOURS) for path in paths)
    if instances is None:
        classes = replace(classes, categories=tuple(replace(c, isthing=False) for c in classes.categories))
    return LabelFileSet(
        "maps",
        split or "all",
        classes,
        _conversion(classes, void, instances is not None),
        folder,
        tuple(maps),
        (".png",) * len(maps),
        ("semantic",) if instances is None else MEASURES,
        IMAGE_SUFFIXES,
    ).from_folder()


def read_voc_layout(root: Path | Sequence[Path], split: str, vocabulary: str | None = None) -> Source:
    """Read objects in Pascal VOC's layout: ``SegmentationClass`` and ``SegmentationObject``.

    Args:
        root: one or more folders or zip archives.
        split: the list ``ImageSets/Segmentation/SPLIT.txt``.
        vocabulary: anything that :func:`load_vocabulary` reads, with ids as in the class maps; None: VOC's.

    Raises:
        DataError: a part is missing.
        VocabularyError: the classes cannot be read.
    """
    tree, name = Tree(root, _HINT), parse_subpath("--split", split)
    listed = tree.need(f"ImageSets/Segmentation/{name}.txt", _YOURS)
    parts = ("JPEGImages", "SegmentationClass", "SegmentationObject")
    images, *maps = (tree.need(part, _YOURS) for part in parts)
    classes = _voc_classes() if vocabulary is None else load_vocabulary(vocabulary)
    conversion = _conversion(classes, VOID, True)
    return LabelFileSet(
        "voc", split, classes, conversion, images, tuple(maps), (".png", ".png"), MEASURES
    ).from_list(listed)


def _conversion(classes: Vocabulary, void: Iterable[int], objects: bool) -> Conversion:
    table = class_table({category.id: i for i, category in enumerate(classes.categories)}, void)
    instances = partial(decode_pixels, channels=1) if objects else None
    return Conversion(classes.isthing, partial(decode_classes, table=table), instances=instances)


def _classes(tree: Tree) -> Vocabulary:
    """The classes in the lines of ``classes.txt``."""
    file = tree.need(CLASSES, "you: name one class per line, or give --vocabulary")
    with prefix_errors(f"{file.path}:"):
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        return replace(load_vocabulary(lines), name="classes")


def _voc_classes() -> Vocabulary:
    """The packaged classes, which are stuff for the benchmark, as things over the background."""
    packaged = load_vocabulary("pascal_voc_21")
    return Vocabulary("pascal_voc_objects", tuple(replace(c, isthing=c.id > 0) for c in packaged.categories))
