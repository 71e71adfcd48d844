"""Folders in COCO's instance format: objects only, whose masks may overlap. Imports no torch.

``ROOT/SPLIT/*.jpg`` and ``ROOT/annotations/instances_SPLIT.json``, or other places that the user names.
Format: https://cocodataset.org/#format-data, section 1 (object detection).
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from odise_pl.data import fields
from odise_pl.data.images import encode_ids
from odise_pl.data.instances import paste, read_objects
from odise_pl.data.prepare.coco import HINT, Repeated, unlisted
from odise_pl.data.prepare.coco_json import ObjectsByImage, image_entries, objects_by_image
from odise_pl.data.prepare.coco_vocabulary import choose_classes
from odise_pl.data.prepare.tree import Folder, Tree, add_root, below
from odise_pl.data.prepare.validate import examine_instances, image_faults, image_member
from odise_pl.data.records import INSTANCES, PANOPTIC, RECORD, Examined, Problem, Source, SourceSample, key_of
from odise_pl.data.segments import segment_records


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add ``coco-instances`` to the prepare command."""
    parser = commands.add_parser(
        "coco-instances", help="COCO's instance format, or a folder of one's own in it"
    )
    add_root(parser)
    parser.add_argument("--split", required=True, help="train2017, val2017, or the name of one's own")
    parser.add_argument("--images", help="folder of the images (default: SPLIT)")
    parser.add_argument(
        "--annotations", help="the annotation file (default: annotations/instances_SPLIT.json)"
    )
    parser.add_argument("--vocabulary", default="auto", help="as for coco")
    parser.set_defaults(
        read=lambda o: read_coco_instances(o.root, o.split, o.vocabulary, o.images, o.annotations)
    )


def read_coco_instances(
    root: Path | Sequence[Path],
    split: str,
    vocabulary: str = "auto",
    images: str | None = None,
    annotations: str | None = None,
) -> Source:
    """Read the annotation of a split; mask AP is what its truth is complete for.

    The panoptic map that training sees has the objects pasted over one another, smaller ones on top, and void
    where there is none.

    Raises:
        DataError: a part is missing or unusable as a whole; faults of single samples are collected in
            :attr:`Source.problems`.
    """
    tree = Tree(root, HINT)
    name = below("--split", split)
    folder = tree.need_folder(below("--images", images) if images else name, f"{name}.zip")
    listed = below("--annotations", annotations) if annotations else f"annotations/instances_{name}.json"
    file = tree.need_file(listed, "annotations_trainval2017.zip")
    data = fields.read_json(file)
    classes = choose_classes(data, file.path, vocabulary, f"coco_{split}", things=True)
    objects = objects_by_image(file, data, classes)
    samples, problems = _match(folder, objects, fields.list_of(data, "images", file.path))
    return Source(
        dataset="coco-instances",
        split=split,
        annotations=file.path.name,
        sha256=hashlib.sha256(file.read()).hexdigest(),
        vocabulary=classes.vocabulary,
        samples=tuple(sorted(samples, key=lambda sample: sample.key)),
        problems=tuple(problems),
        notes=classes.notes,
        examine=partial(_examine, isthing=classes.vocabulary.isthing),
        members=partial(_members, isthing=classes.vocabulary.isthing),
        measures=("instances",),
    )


def _match(
    folder: Folder, objects: ObjectsByImage, items: list[Any]
) -> tuple[list[SourceSample], list[Problem]]:
    images = list(image_entries(items))
    repeated, samples, problems = Repeated(images), [], []
    for image in images:
        name = folder.file(image.file_name).shown if image.file_name else image.where
        causes = [f"{image.where} {fault}" for fault in (*image.faults, *repeated.faults(image))]
        causes += objects.faults.get(image.id, ())
        problems += [Problem(name, objects.file.shown, cause) for cause in causes]
        if not causes:
            assert image.id is not None  # an image without id has a fault
            samples.append(
                SourceSample(
                    key=key_of(image.file_name),
                    name=name,
                    image=folder.file(image.file_name),
                    labels=(),
                    image_id=image.id,
                    size=image.size,
                    instances=tuple(objects.records.get(image.id, ())),
                )
            )
    for image_id in (objects.records.keys() | objects.faults.keys()) - {image.id for image in images}:
        cause = f"{len(objects.records[image_id])} annotations have image_id {image_id}, which images lacks"
        causes = objects.faults.get(image_id, [cause])
        name = f"{objects.file.shown} image_id {image_id}"
        problems += [Problem(name, objects.file.shown, cause) for cause in causes]
    problems += unlisted(folder, {image.file_name for image in images}, f"images in {objects.file.path.name}")
    return samples, problems


def _examine(sample: SourceSample, isthing: tuple[bool, ...]) -> Examined:
    causes = [*image_faults(sample), *examine_instances(sample)[1]]
    if causes:
        return Examined(tuple(Problem(sample.name, sample.image.shown, cause) for cause in causes))
    members = _members(sample, isthing)
    return Examined((), tuple(map(len, members.values())), len(sample.instances or ()))


def _members(sample: SourceSample, isthing: tuple[bool, ...]) -> dict[str, bytes]:
    content = examine_instances(sample)[0][INSTANCES]
    objects = read_objects(content, sample.size)
    ids = paste(objects)
    categories = dict(enumerate(objects.labels.tolist(), start=1))
    crowds = {number for number, crowd in enumerate(objects.crowd.tolist(), start=1) if crowd}
    segments = segment_records(ids, categories, isthing, crowds)
    record = replace(sample, segments=segments).record()
    return {**image_member(sample), PANOPTIC: encode_ids(ids), RECORD: record, INSTANCES: content}
