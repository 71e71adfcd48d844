"""YOLO segmentation labels: a text file per image, a class number and a polygon per line. Imports no torch.

``images/SPLIT`` and ``labels/SPLIT``, or ``SPLIT/images`` and ``SPLIT/labels``; names in ``data.yaml``.
Format: https://docs.ultralytics.com/datasets/segment. Polygons are shares of the image's sides, so the size
of an image is read when it is checked, by many processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from odise_pl.data.images import IMAGE_SUFFIXES, check_stored
from odise_pl.data.manifest import Origin
from odise_pl.data.prepare.files import SourcePath
from odise_pl.data.prepare.listing import image_ids
from odise_pl.data.prepare.objects import check_objects, check_upright, measures_of, pack_objects
from odise_pl.data.prepare.panoptic import find_problems
from odise_pl.data.prepare.source import (
    InstanceRecord,
    Members,
    Problem,
    Source,
    SourceSample,
    make_key,
)
from odise_pl.data.prepare.tree import Tree, parse_subpath
from odise_pl.data.records import DataError, prefix_errors
from odise_pl.vocabulary import Category, Vocabulary, load_vocabulary

_HINT = "see docs/data.md for YOLO's layout"
_NAMES = "data.yaml"
_BOX = 4  # numbers of a line with a box
_LARGEST = 1.01  # share of a side; labelling tools round


@dataclass(frozen=True)
class _Lines:
    """Reads the label file of a sample; can be pickled."""

    index: Mapping[int, int]
    isthing: tuple[bool, ...]

    def check(self, sample: SourceSample) -> list[Problem]:
        try:
            size = _image_size(sample)
        except DataError as error:
            return [Problem(sample.name, sample.image.display_name, str(error))]
        (file,) = sample.labels
        try:
            sample = self._read(sample, size)
        except DataError as error:
            return [Problem(sample.name, file.display_name, str(error))]
        return check_objects(sample) or find_problems(sample, (sample.image, check_upright))

    def pack(self, sample: SourceSample) -> tuple[Members, int]:
        return pack_objects(self._read(sample, _image_size(sample)), self.isthing)

    def _read(self, sample: SourceSample, size: tuple[int, int]) -> SourceSample:
        (file,) = sample.labels
        objects = []
        for number, line in enumerate(_text(file).splitlines(), start=1):
            if line.strip():
                with prefix_errors(f"line {number}"):
                    objects.append(self._object(line, size, f"line {number} of {file.display_name}"))
        return replace(sample, size=size, instances=tuple(objects))

    def _object(self, line: str, size: tuple[int, int], where: str) -> InstanceRecord:
        first, *rest = line.split()
        try:
            category, shares = int(first), np.array(rest, dtype=np.float64)
        except ValueError as error:
            raise DataError("is not a class number and coordinates") from error
        if category not in self.index:
            raise DataError(f"has the class number {category}, which the vocabulary lacks")
        if len(shares) == _BOX:
            raise DataError("is a box; segmentation needs polygons: export the labels as YOLO segmentation")
        if len(shares) % 2 or len(shares) < 6:
            raise DataError(f"has {len(shares)} coordinates; a polygon has an even number of at least 6")
        if not (np.abs(shares) <= _LARGEST).all():
            raise DataError("has coordinates outside 0..1; they are shares of the image's sides")
        points = shares.reshape(-1, 2) * [size[1], size[0]]
        x, y = points.T
        area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
        return InstanceRecord(self.index[category], False, area, [points.ravel().tolist()], where)


def read_yolo(root: Path | Sequence[Path], split: str | None = None, vocabulary: str | None = None) -> Source:
    """Read a split; images without a label file, or with an empty one, have no objects.

    Args:
        root: one or more folders or zip archives.
        split: its name in the layout; None: ``images`` and ``labels`` with all sub-folders.
        vocabulary: anything that :func:`load_vocabulary` reads, with class numbers as ids; None: the names
            in ``data.yaml``, all of them things.

    Raises:
        DataError: a part is missing.
        VocabularyError: the classes cannot be read.
    """
    tree = Tree(root, _HINT)
    images, labels = _folders(tree, split)
    classes = _names(tree) if vocabulary is None else load_vocabulary(vocabulary)
    names = [name for name in images.names() if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise DataError(f"{images.path}: has no image")
    stems = [name.rpartition(".")[0] for name in names]
    if len(set(map(make_key, names))) < len(names):
        raise DataError(f"{images.path}: two images have the same name without suffix")
    present = {name for name in labels.names() if name.endswith(".txt")}
    digest = hashlib.sha256()
    for name in sorted(present):
        digest.update(name.encode(errors="surrogateescape") + labels.file(name).read())
    lines = _Lines({c.id: number for number, c in enumerate(classes.categories)}, classes.isthing)
    samples = [
        SourceSample(
            make_key(name),
            images.file(name).display_name,
            images.file(name),
            (labels.file(f"{stem}.txt"),),
            number,
        )
        for name, stem, number in zip(names, stems, image_ids(stems), strict=True)
    ]
    lonely = sorted(present - {f"{stem}.txt" for stem in stems} - {"classes.txt"})
    cause = f"has no image of this name in {images.display_name}"
    shown = [labels.file(name).display_name for name in lonely]
    return Source(
        origin=Origin("yolo", split or "all", f"{labels.display_name}/*.txt", digest.hexdigest()),
        vocabulary=classes,
        samples=tuple(sorted(samples, key=lambda sample: sample.key)),
        problems=tuple(Problem(name, name, cause) for name in shown),
        check=lines.check,
        pack=lines.pack,
        measures=measures_of(classes),
    )


def _folders(tree: Tree, split: str | None) -> tuple[SourcePath, SourcePath]:
    """The folders of images and labels: Ultralytics' layout, or that of Roboflow's exports."""
    name = "" if split is None else parse_subpath("--split", split)
    for first, second in ((f"images/{name}", f"labels/{name}"), (f"{name}/images", f"{name}/labels")):
        images = tree.find(first.strip("/"))
        if images is not None:
            return images, tree.need(second.strip("/"), "your data set")
    raise DataError(f"{tree.roots[0]}: has neither images/{name} nor {name}/images; {_HINT}")


def _names(tree: Tree) -> Vocabulary:
    """The names in ``data.yaml``: a list, or a mapping from class numbers."""
    file = tree.need(_NAMES, "your labelling tool, or give the classes with --vocabulary")
    text = file.read_text()
    with prefix_errors(f"{file.path}:"):
        try:
            names: Any = OmegaConf.to_container(OmegaConf.create(text))["names"]  # type: ignore[call-overload, index]
            pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
            found = tuple(Category(int(number), str(name)) for number, name in pairs)
        except Exception as error:  # YAML and OmegaConf raise many kinds of errors
            raise DataError(f"has no names: a list, or a mapping from numbers to names ({error})") from error
    return Vocabulary("yolo", found)


def _image_size(sample: SourceSample) -> tuple[int, int]:
    return check_stored(sample.image.read())


def _text(file: SourcePath) -> str:
    """The content of a label file; empty if it is missing, which means no objects."""
    try:
        content = file.read()
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError | KeyError):
            return ""
        raise
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("is not a text file") from error
