"""Data sets in COCO's instance format: only objects, with masks that may overlap. Imports no torch.

``ROOT/SPLIT/*.jpg`` and ``ROOT/annotations/instances_SPLIT.json``, or paths that the user gives.
Format: https://cocodataset.org/#format-data, section 1 (object detection).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from odise_pl.data.instances import paint_ids, read_objects
from odise_pl.data.label_maps import encode_ids
from odise_pl.data.prepare.coco import HINT, Duplicates, find_unlisted, parse_subpath
from odise_pl.data.prepare.coco_json import ObjectsByImage, image_entries, list_of, objects_by_image
from odise_pl.data.prepare.coco_vocabulary import choose_classes
from odise_pl.data.prepare.panoptic import encode_instances, find_image_faults, image_member
from odise_pl.data.prepare.source import Members, Problem, Source, SourceSample, make_key
from odise_pl.data.prepare.tree import Folder, Tree
from odise_pl.data.records import INSTANCES, PANOPTIC, RECORD
from odise_pl.data.segments import describe_segments


def read_coco_instances(
    root: Path | Sequence[Path],
    split: str,
    vocabulary: str = "auto",
    images: str | None = None,
    annotations: str | None = None,
) -> Source:
    """Read the annotation of a split; only mask AP can be measured on it.

    The panoptic map for training has smaller objects on top of larger ones, and void elsewhere.

    Raises:
        DataError: a part is missing or unusable as a whole; faults of single samples are collected in
            :attr:`Source.problems`.
    """
    tree = Tree(root, HINT)
    name = parse_subpath("--split", split)
    folder = tree.need_folder(parse_subpath("--images", images) if images else name, f"{name}.zip")
    listed = (
        parse_subpath("--annotations", annotations) if annotations else f"annotations/instances_{name}.json"
    )
    file = tree.need_file(listed, "annotations_trainval2017.zip")
    data = file.read_json()
    classes = choose_classes(data, file.path, vocabulary, f"coco_{split}", things=True)
    objects = objects_by_image(file, data, classes)
    samples, problems = _match(folder, objects, list_of(data, "images", file.path))
    return Source(
        dataset="coco-instances",
        split=split,
        annotations=file.path.name,
        sha256=hashlib.sha256(file.read()).hexdigest(),
        vocabulary=classes.vocabulary,
        samples=tuple(sorted(samples, key=lambda sample: sample.key)),
        problems=tuple(problems),
        notes=classes.notes,
        check=_check,
        pack=partial(_pack, isthing=classes.vocabulary.isthing),
        measures=("instances",),
    )


def _match(
    folder: Folder, objects: ObjectsByImage, items: list[Any]
) -> tuple[list[SourceSample], list[Problem]]:
    images, samples, problems = image_entries(items), [], []
    duplicates, file = Duplicates(images), objects.file
    for image in images:
        name = folder.file(image.file_name).display_name if image.file_name else image.where
        causes = [*duplicates.causes(image), *objects.faults.get(image.image_id, ())]
        problems += [Problem(name, file.display_name, cause) for cause in causes]
        if not causes:
            assert image.image_id is not None  # an image without id has a fault
            samples.append(
                SourceSample(
                    key=make_key(image.file_name),
                    name=name,
                    image=folder.file(image.file_name),
                    labels=(),
                    image_id=image.image_id,
                    size=image.size,
                    instances=tuple(objects.records.get(image.image_id, ())),
                )
            )
    for image_id in objects.records.keys() - {image.image_id for image in images}:
        cause = f"{len(objects.records[image_id])} annotations have image_id {image_id}, which images lacks"
        causes = objects.faults.get(image_id, [cause])
        problems += [
            Problem(f"{file.display_name} image_id {image_id}", file.display_name, cause) for cause in causes
        ]
    problems += find_unlisted(folder, {image.file_name for image in images}, f"images in {file.path.name}")
    return samples, problems


def _check(sample: SourceSample) -> list[Problem]:
    causes = [*find_image_faults(sample), *encode_instances(sample)[1]]
    return [Problem(sample.name, sample.image.display_name, cause) for cause in causes]


def _pack(sample: SourceSample, isthing: tuple[bool, ...]) -> tuple[Members, int]:
    content, _ = encode_instances(sample)
    objects = read_objects(content, sample.size)
    ids = paint_ids(objects)
    categories = dict(enumerate(objects.labels.tolist(), start=1))
    crowds = {number for number, crowd in enumerate(objects.crowd.tolist(), start=1) if crowd}
    segments = describe_segments(ids, categories, isthing, crowds)
    record = replace(sample, segments=segments).record()
    members = {**image_member(sample), PANOPTIC: encode_ids(ids), RECORD: record, INSTANCES: content}
    return members, len(objects.labels)
