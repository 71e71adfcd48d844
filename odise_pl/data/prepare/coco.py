"""Data sets in COCO's panoptic layout, in folders or zip archives. Imports no torch.

``ROOT/SPLIT/*.jpg``, ``ROOT/annotations/panoptic_SPLIT.json``, ``ROOT/annotations/panoptic_SPLIT/*.png``
and, optionally, ``ROOT/annotations/captions_SPLIT.json`` and ``ROOT/annotations/instances_SPLIT.json``.
Format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from odise_pl.data.manifest import Origin
from odise_pl.data.prepare.coco_json import (
    Annotations,
    ImageEntry,
    ImageList,
    find_unlisted,
    read_annotations,
    read_caption,
    read_object,
    read_panoptic,
)
from odise_pl.data.prepare.coco_vocabulary import FileClasses, choose_classes, match_classes
from odise_pl.data.prepare.files import SourcePath
from odise_pl.data.prepare.panoptic import check_panoptic, pack_panoptic
from odise_pl.data.prepare.source import InstanceRecord, Source
from odise_pl.data.prepare.tree import Tree, parse_subpath
from odise_pl.data.records import DataError

HINT = "download COCO 2017 from https://cocodataset.org/#download, or see docs/data.md for other data"
_ARCHIVE = "panoptic_annotations_trainval2017.zip"


def read_coco(root: Path | Sequence[Path], split: str, vocabulary: str = "auto") -> Source:
    """Read the annotation of a split and match it with the files on disk, without reading these.

    Args:
        root: one or more folders or zip archives.
        split: for example ``train2017``.
        vocabulary: see :func:`choose_classes`.

    Raises:
        DataError: a part of the layout is missing or unusable as a whole; faults of single samples are
            collected in :attr:`Source.problems`.
    """
    tree, name = Tree(root, HINT), parse_subpath("--split", split)
    folder = tree.need(name, f"{name}.zip")
    file = tree.need(f"annotations/panoptic_{name}.json", _ARCHIVE)
    inner = f"panoptic_{name}.zip inside {_ARCHIVE}, which must be unpacked"
    maps = tree.need(f"annotations/panoptic_{name}", inner)
    data = file.read_json()
    classes = choose_classes(data, file.path, vocabulary, f"coco_{split}")
    images = ImageList(file, data)
    panoptic = read_annotations(file, data, partial(read_panoptic, classes=classes))
    _require_one_annotation(images, panoptic)
    captions, caption_notes = _read_captions(tree.find(f"annotations/captions_{name}.json"), images, file)
    objects_file = tree.find(f"annotations/instances_{name}.json")
    objects, object_notes = _read_objects(objects_file, images, classes)
    samples, problems = images.match(folder, panoptic, *([objects] if objects else []))
    problems += [*images.orphans(panoptic), *(objects.problems(None) if objects else ())]
    problems += [problem for image_id in captions.faults for problem in captions.problems(image_id)]
    problems += find_unlisted(folder, data["images"], f"images in {file.path.name}")
    problems += find_unlisted(maps, data["annotations"], f"annotations in {file.path.name}")
    annotated = b"".join(part.read() for part in (file, objects_file) if part is not None)
    return Source(
        origin=Origin("coco", split, file.path.name, hashlib.sha256(annotated).hexdigest()),
        vocabulary=classes.vocabulary,
        samples=tuple(
            replace(
                sample,
                labels=(maps.file(png),),
                segments=segments,
                captions=tuple(filter(None, captions.values.get(sample.image_id, ()))),
                instances=tuple(objects.values.get(sample.image_id, ())) if objects else None,
            )
            for sample in samples
            for png, segments in panoptic.values[sample.image_id]
        ),
        problems=tuple(problems),
        notes=(*caption_notes, *object_notes),
        check=check_panoptic,
        pack=pack_panoptic,
    )


def _require_one_annotation(images: ImageList, panoptic: Annotations[Any]) -> None:
    """Add a fault to the images that have several annotations or none."""
    for image_id, image in images.by_id.items():
        count = len(panoptic.values.get(image_id, ())) + len(panoptic.faults.get(image_id, ()))
        if count != 1:
            fault = f"{count or 'no'} annotations have image_id {image_id} ({image.file_name})"
            panoptic.faults.setdefault(image_id, []).append(fault)


def _read_captions(
    file: SourcePath | None, images: ImageList, panoptic: SourcePath
) -> tuple[Annotations[str], list[str]]:
    """The captions, and notes for the user; those of images of other splits are only counted."""
    if file is None:
        return Annotations(panoptic, {}, {}), []
    data = file.read_json()
    captions, notes = read_annotations(file, data, read_caption), []
    if "images" in data:
        _read_images_beside(file, data, images)
    else:
        notes.append(f"{file.display_name} lists no images: captions are matched by image_id alone")
    skipped = sum(
        not text or image_id not in images.by_id
        for image_id, texts in captions.values.items()
        for text in texts
    )
    if skipped:
        notes.append(
            f"{skipped} captions are skipped: they have no text, or this split does not list their images"
        )
    return captions, notes


def _read_objects(
    file: SourcePath | None, images: ImageList, classes: FileClasses
) -> tuple[Annotations[InstanceRecord] | None, list[str]]:
    """The objects, whose masks may overlap unlike segments, and notes for the user."""
    if file is None:
        return None, []
    data = file.read_json()
    theirs = _read_images_beside(file, data, images)
    known = match_classes(data, file.path, classes)
    objects = read_annotations(file, data, partial(read_object, classes=known))
    for image_id, image in images.by_id.items():
        if fault := _find_difference(image, theirs.by_id.get(image_id)):
            objects.faults.setdefault(image_id, []).append(fault)
    skipped = sum(len(some) for image_id, some in objects.values.items() if image_id not in images.by_id)
    note = f"{skipped} objects are skipped, because this split does not list their images"
    return objects, [note] if skipped else []


def _read_images_beside(file: SourcePath, data: Any, images: ImageList) -> ImageList:
    """The images of an optional annotation file.

    Raises:
        DataError: there is no list, or an id refers to another image than in the panoptic file.
    """
    theirs = ImageList(file, data)
    for image_id, entry in theirs.by_id.items():
        ours = images.by_id.get(image_id, entry).file_name
        if ours and entry.file_name and Path(entry.file_name).stem != Path(ours).stem:
            raise DataError(
                f"{file.path}: {entry.where} has id {image_id} and file_name {entry.file_name}, but in the "
                f"panoptic file this id is {ours}: use the same ids"
            )
    return theirs


def _find_difference(image: ImageEntry, entry: ImageEntry | None) -> str:
    """A fault of an image in the instance file, which must also list images without objects."""
    if entry is None:
        return f"no entry of images has id {image.image_id} ({image.file_name}), so its objects are unknown"
    if entry.fault or image.fault or entry.size == image.size:
        return entry.fault
    return f"{entry.where} has height and width {list(entry.size)}, the panoptic file {list(image.size)}"
