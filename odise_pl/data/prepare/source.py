"""Data sets before they are packed into shards. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from odise_pl.data.manifest import Origin
from odise_pl.data.prepare.files import SourcePath
from odise_pl.data.records import SegmentRecord
from odise_pl.vocabulary import MEASURES, Vocabulary

Members = Mapping[str, bytes]  # content of the members of a sample by suffix


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One annotated object; masks of objects may overlap.

    Attributes:
        category: contiguous class index.
        iscrowd: a group that is not split into objects.
        area: pixels, as annotated.
        segmentation: COCO's polygons (list of lists) or run-length code (dict with size and counts).
        where: its position in the annotation file, for messages.
    """

    category: int
    iscrowd: bool
    area: float
    segmentation: Any
    where: str


@dataclass(frozen=True)
class SourceSample:
    """One image of a data set before it is packed.

    Attributes:
        key: unique name in the shard set, without dots.
        name: the image file relative to the root of the data set, for messages.
        image: the image file.
        labels: the panoptic PNG, or the label files to convert.
        image_id: the data set's id.
        size: annotated height and width; zeros if they are not annotated.
        segments: segments of the PNG; empty if they are not annotated.
        captions: may be empty.
        instances: annotated objects; None if they are the things among the segments.
    """

    key: str
    name: str
    image: SourcePath
    labels: tuple[SourcePath, ...]
    image_id: int
    size: tuple[int, int] = (0, 0)
    segments: tuple[SegmentRecord, ...] = ()
    captions: tuple[str, ...] = ()
    instances: tuple[InstanceRecord, ...] | None = None

    def record(self) -> bytes:
        """The sample's JSON member."""
        height, width = self.size
        data = {
            "image_id": self.image_id,
            "height": height,
            "width": width,
            "segments_info": [{name: getattr(one, name) for name in one.__slots__} for one in self.segments],
            "captions": list(self.captions),
        }
        return to_json(data)


def to_json(data: Any) -> bytes:
    """Compact JSON with sorted keys: equal data give equal bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, order=True)
class Problem:
    """A reason why a sample cannot be used.

    Attributes:
        sample: the sample's image file, or its entry if that has no file name.
        file: the faulty file, relative to the data set's root.
        cause: what is wrong with it.
    """

    sample: str
    file: str
    cause: str


@dataclass(frozen=True)
class Source:
    """One split of a data set: its annotation, and its image and label files, not read yet.

    Attributes:
        origin: format, split and annotation file, for the manifest.
        vocabulary: the classes; segments refer to them by index.
        samples: those without faults in the annotation file.
        problems: faults in the annotation file.
        check: opens the files of a sample and returns all problems.
        pack: returns the members of a sample without problems, and its number of segments.
        measures: which of ``MEASURES`` the annotations are complete for.
        notes: for the user.
    """

    origin: Origin
    vocabulary: Vocabulary
    samples: tuple[SourceSample, ...]
    problems: tuple[Problem, ...]
    check: Callable[[SourceSample], list[Problem]]
    pack: Callable[[SourceSample], tuple[Members, int]]
    measures: tuple[str, ...] = MEASURES
    notes: tuple[str, ...] = ()


def make_key(file_name: str) -> str:
    """The key of an image in a shard: its path, see ``fields.plain_path``, without dots and slashes."""
    return re.sub("[./]", "_", PurePosixPath(file_name).with_suffix("").as_posix())
