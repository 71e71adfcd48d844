"""From the bytes of a sample to its image, its id map and what the ids mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from reprlib import repr as shortened
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from odise_pl.data import fields
from odise_pl.data.images import decode_ids, decode_rgb, decode_semantic, unique_ids
from odise_pl.data.instances import Objects, read_objects
from odise_pl.data.manifest import FILE_NAME
from odise_pl.data.reading import RawSample
from odise_pl.data.records import INSTANCES, PANOPTIC, RECORD, SEMANTIC, DataError
from odise_pl.structures import Segment, Size

_T = TypeVar("_T")


@dataclass(frozen=True)
class DecodedSample:
    """A sample before any transform.

    Attributes:
        key: the sample's key in its shard.
        image: RGB.
        ids: int32 [H, W], the segment of each pixel, 0 for void.
        segments: what the ids mean, crowds included.
        image_id: the data set's id.
        captions: may be empty.
        labelled: False if the record has no segments_info: then everything is void.
        semantic: int32 [H, W], class of each pixel or -1; None if the segments say it.
        objects: true objects; None if the things of the id map are.
        generated_caption: by a captioning model, if one was asked.
        image_suffix: of the image's name in its shard.
    """

    key: str
    image: Image.Image
    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]
    image_id: int
    captions: tuple[str, ...]
    labelled: bool = True
    semantic: NDArray[np.int32] | None = None
    objects: Objects | None = None
    generated_caption: str | None = None
    image_suffix: str = "jpg"

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.image.height, self.image.width


def decode(raw: RawSample, isthing: Sequence[bool] | None = None) -> DecodedSample:
    """Decode a sample.

    Args:
        raw: the sample.
        isthing: one flag per class of its set, which its labels must agree with; None: nobody looks at them.

    Raises:
        DataError: a member is damaged or the members do not fit together; the message names the sample.
    """
    image = _member(raw, raw.image, decode_rgb)
    record = _member(raw, RECORD, _record)
    labelled = record["segments"] is not None
    plain = DecodedSample(
        raw.key,
        image,
        np.zeros((image.height, image.width), dtype=np.int32),
        record["segments"] or (),
        record["image_id"],
        record["captions"],
        labelled,
        generated_caption=record["generated_caption"],
        image_suffix=raw.image,
    )
    sample = _with_labels(raw, plain) if labelled else plain
    if isthing is not None:
        try:
            _check_classes(sample, isthing)
        except DataError as error:
            raise DataError(f"{raw.name}: {error}") from error
    return sample


def _with_labels(raw: RawSample, sample: DecodedSample) -> DecodedSample:
    size, shown = sample.size, sample.image.size
    ids = _member(raw, PANOPTIC, decode_ids)
    if ids.shape != size:
        raise DataError(f"{raw.name}: image of {shown}, panoptic map of {ids.shape[::-1]} pixels")
    unknown = set(unique_ids(ids).tolist()) - {0} - {segment.id for segment in sample.segments}
    if unknown:
        raise DataError(f"{raw.name}: {PANOPTIC} has ids that {RECORD} lacks: {sorted(unknown)[:5]}")
    semantic = _member(raw, SEMANTIC, decode_semantic) if SEMANTIC in raw.members else None
    if semantic is not None and semantic.shape != size:
        raise DataError(f"{raw.name}: image of {shown}, semantic map of {semantic.shape[::-1]} pixels")
    read = partial(read_objects, size=size)
    objects = _member(raw, INSTANCES, read) if INSTANCES in raw.members else None
    return replace(sample, ids=ids, semantic=semantic, objects=objects)


def _member(raw: RawSample, suffix: str, read: Callable[[bytes], _T]) -> _T:
    if suffix not in raw.members:
        raise DataError(f"{raw.name}: member {suffix} is missing")
    try:
        return read(raw.members[suffix])
    except DataError as error:
        raise DataError(f"{raw.name}: member {suffix} {error}") from error


def _record(data: bytes) -> dict[str, Any]:
    record = fields.parsed(data)
    captions = fields.sequence(record, "captions")
    segments, generated = record.get("segments_info"), record.get("generated_caption")
    if not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"has captions {shortened(captions)}, expected texts")
    return {
        "image_id": fields.integer(record, "image_id"),
        "captions": tuple(captions),
        "segments": None if segments is None else _segments(fields.sequence(record, "segments_info")),
        "generated_caption": None if generated is None else fields.string(record, "generated_caption"),
    }


def _segments(items: list[Any]) -> tuple[Segment, ...]:
    segments = tuple(
        Segment(
            fields.positive(item, "id"),
            fields.integer(item, "category"),
            fields.flag(item, "isthing"),
            fields.flag(item, "iscrowd"),
        )
        for item in items
    )
    if len({segment.id for segment in segments}) < len(segments):
        raise DataError("has two segments of one id")
    return segments


def _check_classes(sample: DecodedSample, isthing: Sequence[bool]) -> None:
    """Raises DataError if the labels are none of these classes, or are things where they are stuff."""
    for segment in sample.segments:
        if not 0 <= segment.category < len(isthing) or segment.isthing != isthing[segment.category]:
            kind = "thing" if segment.isthing else "stuff"
            raise DataError(f"member {RECORD} has category {segment.category} ({kind}), unlike {FILE_NAME}")
    for label in () if sample.objects is None else sample.objects.labels.tolist():
        if not 0 <= label < len(isthing) or not isthing[label]:
            raise DataError(f"member {INSTANCES} has category {label}, which is no thing of {FILE_NAME}")
    if sample.semantic is not None and sample.semantic.max(initial=-1) >= len(isthing):
        raise DataError(f"member {SEMANTIC} has class {sample.semantic.max()}, which {FILE_NAME} lacks")
