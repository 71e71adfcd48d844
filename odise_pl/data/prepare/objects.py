"""Check and pack samples whose labels are single objects: polygons or run-length codes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from odise_pl.data.images import exif_orientation, open_image
from odise_pl.data.instances import paint_ids, read_objects
from odise_pl.data.label_maps import encode_ids
from odise_pl.data.prepare.panoptic import check_image, encode_instances, find_problems, image_member
from odise_pl.data.prepare.source import Members, Problem, SourceSample
from odise_pl.data.records import INSTANCES, PANOPTIC, RECORD, DataError
from odise_pl.data.segments import describe_segments
from odise_pl.vocabulary import MEASURES, Vocabulary, normalise_name


def check_objects(sample: SourceSample) -> list[Problem]:
    """Compare the image of a sample with its annotation, and check its objects."""
    return find_problems(sample, (sample.image, check_image), (sample.image, encode_instances))


def check_upright(sample: SourceSample) -> None:
    """Raise DataError if viewers turn the image, so that labels drawn on it do not fit the stored pixels."""
    turned = exif_orientation(open_image(sample.image.read(), draft=True))
    if turned != 1:
        raise DataError(
            f"is turned by its EXIF orientation ({turned}), so labels may not fit the stored pixels; turn "
            f"the files (mogrify -auto-orient), and check the labels"
        )


def pack_objects(sample: SourceSample, isthing: tuple[bool, ...]) -> tuple[Members, int]:
    """The members of a sample without problems, and its number of segments.

    In the panoptic map smaller objects are on top of larger ones, all are on top of stuff, and the rest is
    void. The regions of a stuff class are one segment.
    """
    objects = read_objects(encode_instances(sample), sample.size)
    labels = objects.labels.tolist()
    things = tuple(one for one in sample.instances or () if isthing[one.category])
    stuff = np.array([not isthing[label] for label in labels], dtype=bool)
    first: dict[int, int] = {}
    numbers = [n if isthing[c] else first.setdefault(c, n) for n, c in enumerate(labels, start=1)]
    ids = np.array([0, *numbers], np.int32)[paint_ids(replace(objects, crowd=objects.crowd | stuff))]
    crowds = {number for number, crowd in enumerate(objects.crowd.tolist(), start=1) if crowd}
    segments = describe_segments(ids, dict(enumerate(labels, start=1)), isthing, crowds)
    content = encode_instances(replace(sample, instances=things))
    record = replace(sample, segments=segments).record()
    members = {**image_member(sample), PANOPTIC: encode_ids(ids), RECORD: record, INSTANCES: content}
    return members, len(things) + len(first)


def measures_of(vocabulary: Vocabulary) -> tuple[str, ...]:
    """What labelled objects allow to measure: with stuff, the picture counts as labelled completely."""
    return ("instances",) if all(vocabulary.isthing) else MEASURES


def index_by_name(vocabulary: Vocabulary) -> Mapping[str, int]:
    """The class index of each normalised name; main names and official spellings come before synonyms."""
    index: dict[str, int] = {}
    pairs = list(enumerate(vocabulary.categories))
    for number, category in pairs:
        for name in filter(None, (category.name, category.official)):
            index.setdefault(normalise_name(name), number)
    for number, category in pairs:
        for name in category.synonyms:
            index.setdefault(normalise_name(name), number)
    return index
