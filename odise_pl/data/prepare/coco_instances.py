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

from odise_pl.data.manifest import Origin
from odise_pl.data.prepare.coco import HINT
from odise_pl.data.prepare.coco_json import ImageList, find_unlisted, read_annotations, read_object
from odise_pl.data.prepare.coco_vocabulary import choose_classes
from odise_pl.data.prepare.objects import check_objects, pack_objects
from odise_pl.data.prepare.source import Source
from odise_pl.data.prepare.tree import Tree, parse_subpath


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
    tree, name = Tree(root, HINT), parse_subpath("--split", split)
    folder = tree.need(parse_subpath("--images", images or name), f"{name}.zip")
    listed = parse_subpath("--annotations", annotations or f"annotations/instances_{name}.json")
    file = tree.need(listed, "annotations_trainval2017.zip")
    data = file.read_json()
    classes = choose_classes(data, file.path, vocabulary, f"coco_{split}", things=True)
    objects = read_annotations(file, data, partial(read_object, classes=classes))
    entries = ImageList(file, data)
    samples, problems = entries.match(folder, objects)
    problems += entries.orphans(objects)
    problems += find_unlisted(folder, data["images"], f"images in {file.path.name}")
    return Source(
        origin=Origin("coco-instances", split, file.path.name, hashlib.sha256(file.read()).hexdigest()),
        vocabulary=classes.vocabulary,
        samples=tuple(replace(s, instances=tuple(objects.values.get(s.image_id, ()))) for s in samples),
        problems=tuple(problems),
        check=check_objects,
        pack=partial(pack_objects, isthing=classes.vocabulary.isthing),
        measures=("instances",),
    )
