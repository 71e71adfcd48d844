"""What a data set module hands to the shard writer, and what can be wrong with it. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from odise_pl.data.files import SourceFile
from odise_pl.errors import UserError
from odise_pl.vocabulary import MEASURES, Vocabulary

# The members of a sample in a shard: KEY.jpg or KEY.png, KEY.panoptic.png, KEY.json, and more where needed.
IMAGES = ("jpg", "png")
PANOPTIC = "panoptic.png"
RECORD = "json"
SEMANTIC = "semantic.png"
INSTANCES = "instances.json"


class DataError(UserError):
    """Data that is missing, damaged or does not fit; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One segment of a panoptic PNG.

    Attributes:
        id: R + 256 G + 65536 B of the segment's pixels, never 0.
        category: contiguous class index.
        isthing: countable object (True) or stuff (False).
        iscrowd: a group that is not split into instances.
        area: pixels, as annotated.
        bbox: x, y, width, height in pixels, as annotated.
    """

    id: int
    category: int
    isthing: bool
    iscrowd: bool
    area: float
    bbox: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One annotated object, whose mask may overlap others.

    Attributes:
        category: contiguous class index.
        iscrowd: a group that is not split into objects.
        area: pixels, as annotated.
        segmentation: COCO's polygons (list of lists) or run-length code (dict with size and counts).
        where: its place in the annotation file, for messages.
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
        name: how messages call it: the image file, from the root of the data set.
        image: the image file.
        labels: the panoptic PNG, or what the data set module makes one from.
        image_id: the data set's id.
        size: annotated height and width; zeros if only the files know.
        segments: what the ids of the PNG mean; empty if only the files know.
        captions: may be empty.
        instances: annotated objects; None if the data set does not tell them apart from its segments.
    """

    key: str
    name: str
    image: SourceFile
    labels: tuple[SourceFile, ...]
    image_id: int
    size: tuple[int, int] = (0, 0)
    segments: tuple[SegmentRecord, ...] = ()
    captions: tuple[str, ...] = ()
    instances: tuple[InstanceRecord, ...] | None = None

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Every source file of the sample."""
        return (self.image, *self.labels)

    def record(self) -> bytes:
        """The sample's JSON member; equal samples give equal bytes."""
        height, width = self.size
        data = {
            "image_id": self.image_id,
            "height": height,
            "width": width,
            "segments_info": [asdict(segment) for segment in self.segments],
            "captions": list(self.captions),
        }
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Problem:
    """Why a sample cannot be used.

    Attributes:
        sample: the sample's image file, or the nearest thing to it that the data set names.
        file: the file at fault, relative to the data set's root.
        cause: what is wrong with it.
    """

    sample: str
    file: str
    cause: str


@dataclass(frozen=True)
class Examined:
    """What the files of a sample are like.

    Attributes:
        problems: all that is wrong with them.
        sizes: bytes of each member of the sample in a shard; empty if there are problems.
        segments: annotated segments, crowds included.
    """

    problems: tuple[Problem, ...]
    sizes: tuple[int, ...] = ()
    segments: int = 0


@dataclass(frozen=True)
class Source:
    """One split of a data set, read but with its images and PNGs still unopened.

    Attributes:
        dataset: name of the data set's format, "coco".
        split: name of the split, "train2017".
        annotations: name of the annotation file.
        sha256: of the annotation file.
        vocabulary: the classes; segments refer to them by index.
        samples: those that the annotation file describes without fault.
        problems: the faults found so far; their samples are not among ``samples``.
        notes: what a user should know but which leaves no sample out.
        examine: opens the files of a sample.
        members: reads the files of a sample: the content of each member by its suffix.
        measures: which of ``MEASURES`` the truth is complete for.
    """

    dataset: str
    split: str
    annotations: str
    sha256: str
    vocabulary: Vocabulary
    samples: tuple[SourceSample, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    examine: Callable[[SourceSample], Examined]
    members: Callable[[SourceSample], Mapping[str, bytes]]
    measures: tuple[str, ...] = MEASURES


def key_of(file_name: str) -> str:
    """The sample's key: dots would end it in a shard, slashes would make a folder."""
    return re.sub(r"[./\\\x00-\x1f\x7f-\x9f]", "_", PurePosixPath(file_name).with_suffix("").as_posix())
