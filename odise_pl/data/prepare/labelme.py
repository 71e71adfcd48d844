"""Labelme's JSON files beside images, with the format's own rules for groups. Imports no torch.

Read file by file, unlike by supervision: a damaged file is one problem, memory holds polygons instead of
masks, and points keep their fractions.
Format: https://github.com/wkentaro/labelme.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from odise_pl.data import fields
from odise_pl.data.images import IMAGE_SUFFIXES, open_image
from odise_pl.data.instances import Rle, encode_rle
from odise_pl.data.manifest import Origin
from odise_pl.data.prepare.files import SourcePath
from odise_pl.data.prepare.listing import image_ids
from odise_pl.data.prepare.objects import (
    check_objects,
    check_upright,
    index_by_name,
    measures_of,
    pack_objects,
)
from odise_pl.data.prepare.panoptic import find_problems
from odise_pl.data.prepare.source import InstanceRecord, Problem, Source, SourceSample, make_key
from odise_pl.data.prepare.tree import Tree
from odise_pl.data.records import DataError, prefix_errors
from odise_pl.vocabulary import Category, Vocabulary, load_vocabulary, normalise_name

_HINT = "see docs/data.md for Labelme folders"
_CORNERS = 64  # of a circle
_NO_AREA = ("point", "points", "line", "linestrip")


@dataclass(frozen=True)
class _Shape:
    """A drawn region: its label, its group, and polygons or a run-length code."""

    label: str
    group: int | None
    region: list[list[float]] | Rle
    where: str


@dataclass(frozen=True)
class _File:
    """A readable JSON file: path of its image, height and width, shapes, and how many have no area."""

    image: str
    size: tuple[int, int]
    shapes: tuple[_Shape, ...]
    skipped: int


def read_labelme(
    root: Path | Sequence[Path],
    split: str | None = None,
    images: str | None = None,
    vocabulary: str | None = None,
) -> Source:
    """Read a folder of JSON files with its sub-folders.

    Args:
        root: one or more folders or zip archives.
        split: folder to read; None: the only root.
        images: folder of the images; None: they are beside the JSON files.
        vocabulary: anything that :func:`load_vocabulary` reads; None: the labels, sorted, all of them things.

    Raises:
        DataError: a folder is missing or has no JSON file; faults of single files are collected in
            :attr:`Source.problems`.
        VocabularyError: the classes cannot be read.
    """
    tree = Tree(root, _HINT)
    folder = tree.folder(split)
    place = folder if images is None else tree.need(images, "your data set")
    names = [name for name in folder.names() if name.lower().endswith(".json")]
    if not names:
        raise DataError(f"{folder.path}: has no JSON file; {_HINT}")
    digest, read, problems = hashlib.sha256(), dict[str, _File](), list[Problem]()
    for name in names:
        file = folder.file(name)
        try:
            content = file.read()
            digest.update(name.encode(errors="surrogateescape") + content)
            read[name] = _parse(content, PurePosixPath(name).parent.as_posix() if images is None else ".")
        except DataError as error:
            problems.append(Problem(file.display_name, file.display_name, str(error)))
    classes = _classes(read.values(), split) if vocabulary is None else load_vocabulary(vocabulary)
    samples, faults = _samples(folder, place, read, classes)
    return Source(
        origin=Origin("labelme", split or "all", f"{folder.display_name}/*.json", digest.hexdigest()),
        vocabulary=classes,
        samples=tuple(sorted(samples, key=lambda sample: sample.key)),
        problems=(*problems, *faults),
        check=_check,
        pack=partial(pack_objects, isthing=classes.isthing),
        measures=measures_of(classes),
        notes=tuple(_notes(place, read, {PurePosixPath(name).stem for name in {*names} - {*read}})),
    )


def _check(sample: SourceSample) -> list[Problem]:
    return check_objects(sample) or find_problems(sample, (sample.image, check_upright))


def _classes(files: Iterable[_File], split: str | None) -> Vocabulary:
    names = {normalise_name(s.label): " ".join(s.label.split()) for file in files for s in file.shapes}
    if not names:
        raise DataError("no JSON file has a shape with an area; give the classes with --vocabulary")
    ordered = [names[key] for key in sorted(names)]
    return Vocabulary(f"labelme_{split or 'all'}", tuple(Category(i, n) for i, n in enumerate(ordered)))


def _samples(
    folder: SourcePath, place: SourcePath, files: Mapping[str, _File], classes: Vocabulary
) -> tuple[list[SourceSample], list[Problem]]:
    """A sample of each file, or its problem."""
    index, times = index_by_name(classes), Counter(make_key(file.image) for file in files.values())
    samples, problems = [], []
    ids = image_ids([PurePosixPath(file.image).stem for file in files.values()])
    for number, (name, file) in zip(ids, files.items(), strict=True):
        image = place.file(file.image)
        try:
            if times[make_key(file.image)] > 1:
                raise DataError(f"is of the image {file.image}, as another file is")
            objects = tuple(_objects(file, index, folder.file(name).display_name))
            sample = SourceSample(
                make_key(file.image), image.display_name, image, (), number, file.size, instances=objects
            )
            samples.append(sample)
        except DataError as error:
            problems.append(Problem(image.display_name, folder.file(name).display_name, str(error)))
    return samples, problems


def _objects(file: _File, index: Mapping[str, int], where: str) -> Iterator[InstanceRecord]:
    """One object of each group of shapes of the same label, and of each shape without a group."""
    groups: dict[tuple[object, ...], list[_Shape]] = defaultdict(list)
    for number, shape in enumerate(file.shapes):
        label = normalise_name(shape.label)
        if label not in index:
            raise DataError(f"{shape.where} has the label '{shape.label}', which the vocabulary lacks")
        groups[(label, "alone", number) if shape.group is None else (label, shape.group)].append(shape)
    for (name, *_), shapes in groups.items():
        with prefix_errors(shapes[0].where):
            code = mask_api.merge([encode_rle(shape.region, file.size) for shape in shapes])
        yield InstanceRecord(
            category=index[str(name)],
            iscrowd=False,
            area=float(mask_api.area(code)),
            segmentation=code,
            where=f"{shapes[0].where} of {where}",
        )


def _notes(place: SourcePath, files: Mapping[str, _File], damaged: Set[str]) -> Iterator[str]:
    """What was skipped; ``damaged`` are names of JSON files, without suffix, that cannot be read."""
    if skipped := sum(file.skipped for file in files.values()):
        yield f"skipped {skipped} shapes without an area (points and lines)"
    labelled = {file.image for file in files.values()}
    pictures = [name for name in place.names() if name.lower().endswith(IMAGE_SUFFIXES)]
    others = [n for n in pictures if n not in labelled and PurePosixPath(n).stem not in damaged]
    if others:
        yield f"skipped {len(others)} pictures without a JSON file, for example {others[0]}"


def _parse(content: bytes, folder: str) -> _File:
    """Read a file; ``folder`` is that of its image."""
    data = fields.parse_json(content)
    image = fields.plain_path(f"{folder}/{PureWindowsPath(fields.text(data, 'imagePath')).name}")
    size = fields.positive(data, "imageHeight"), fields.positive(data, "imageWidth")
    shapes, skipped = [], 0
    for number, item in enumerate(fields.sequence(data, "shapes")):
        with prefix_errors(f"shapes[{number}]"):
            region = _region(item, size)
            if region is None:
                skipped += 1
                continue
            group = None if item.get("group_id") is None else fields.integer(item, "group_id")
            shapes.append(_Shape(fields.text(item, "label"), group, region, f"shapes[{number}]"))
    return _File(image, size, tuple(shapes), skipped)


def _region(item: Any, size: tuple[int, int]) -> list[list[float]] | Rle | None:
    """What a shape covers; None if it has no area."""
    kind, points = fields.string(item, "shape_type"), fields.sequence(item, "points")
    if kind in _NO_AREA:
        return None
    try:
        array = np.array(points, dtype=np.float64).reshape(len(points), 2)
    except (ValueError, TypeError) as error:
        raise DataError("has points that are not pairs of numbers") from error
    if kind == "polygon":
        return [array.ravel().tolist()]
    if kind not in ("rectangle", "circle", "mask"):
        raise DataError(f"has the shape_type '{kind}'; polygon, rectangle, circle and mask are read")
    if len(array) < 2:
        raise DataError(f"is a {kind} of {len(array)} points")
    if kind == "mask":
        return _mask(item, array, size)
    if kind == "circle":  # its centre and a point on it
        angles = np.linspace(0, 2 * math.pi, _CORNERS, endpoint=False)
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return [(array[0] + math.dist(array[0], array[1]) * around).ravel().tolist()]
    (left, top), (right, bottom) = array.min(axis=0).tolist(), array.max(axis=0).tolist()
    return [[left, top, right, top, right, bottom, left, bottom]]


def _mask(item: Any, box: np.ndarray, size: tuple[int, int]) -> Rle:
    """The run-length code of a mask that is stored as a PNG of its box."""
    try:
        inside = np.asarray(open_image(base64.b64decode(fields.text(item, "mask"))).convert("L")) > 0
    except binascii.Error as error:
        raise DataError("has a mask that is not in base64") from error
    left, top = np.round(box.min(axis=0)).astype(int).tolist()
    if left < 0 or top < 0 or top + inside.shape[0] > size[0] or left + inside.shape[1] > size[1]:
        raise DataError("has a mask that is not inside the image")
    whole = np.zeros(size, dtype=np.uint8, order="F")
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    code: Rle = mask_api.encode(whole)
    return code
