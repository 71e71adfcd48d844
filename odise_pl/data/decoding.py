"""Decode the bytes of a sample to image, id map and segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from odise_pl.data import fields
from odise_pl.data.images import decode_rgb
from odise_pl.data.instances import Objects, read_objects
from odise_pl.data.label_maps import decode_ids, decode_semantic, unique_ids
from odise_pl.data.manifest import FILE_NAME
from odise_pl.data.reading import Item, RawSample
from odise_pl.data.records import INSTANCES, PANOPTIC, RECORD, SEMANTIC, DataError, prefix_errors
from odise_pl.structures import SampleInfo, Segment, Size

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class DecodedSample(SampleInfo):
    """A sample before any transform.

    Attributes:
        image: RGB.
        ids: int32 [H, W], the segment of each pixel, 0 for void; all void if the sample is not labelled.
        segments: the segments of the map, crowds included.
        semantic: int32 [H, W], class of each pixel or -1; None if it follows from the segments.
        objects: annotated objects; None if they are the things of the id map.
    """

    image: Image.Image
    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]
    semantic: NDArray[np.int32] | None = None
    objects: Objects | None = None

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.image.height, self.image.width


def try_decode(item: Item, isthing: Sequence[bool] | None) -> DecodedSample | DataError:
    """:func:`decode` that returns damage instead of raising it."""
    try:
        return item if isinstance(item, DataError) else decode(item, isthing)
    except DataError as error:
        return error


def decode(raw: RawSample, isthing: Sequence[bool] | None = None) -> DecodedSample:
    """Decode a sample.

    Args:
        raw: the sample.
        isthing: one flag per class, to check the labels against; None skips the check.

    Raises:
        DataError: a member is damaged or the members disagree; the message names the sample.
    """
    with prefix_errors(f"{raw.name}:"):
        sample = _decode(raw)
        if isthing is not None:
            _check_classes(sample, isthing)
    return sample


def _decode(raw: RawSample) -> DecodedSample:
    image = _decode_member(raw, raw.image, decode_rgb)
    record = _decode_member(raw, RECORD, _record) | {
        "key": raw.key,
        "image": image,
        "image_suffix": raw.image,
    }
    size = image.height, image.width
    if not record["labelled"]:
        return DecodedSample(ids=np.zeros(size, dtype=np.int32), **record)
    ids = _decode_member(raw, PANOPTIC, decode_ids)
    semantic = _decode_member(raw, SEMANTIC, decode_semantic) if SEMANTIC in raw.members else None
    for kind, values in (("panoptic", ids), ("semantic", semantic)):
        if values is not None and values.shape != size:
            raise DataError(f"image of {image.size}, {kind} map of {values.shape[::-1]} pixels")
    unknown = set(unique_ids(ids).tolist()) - {0} - {segment.id for segment in record["segments"]}
    if unknown:
        raise DataError(f"{PANOPTIC} has ids that {RECORD} lacks: {sorted(unknown)[:5]}")
    has_objects = INSTANCES in raw.members
    objects = _decode_member(raw, INSTANCES, lambda data: read_objects(data, size)) if has_objects else None
    return DecodedSample(ids=ids, semantic=semantic, objects=objects, **record)


def _decode_member(raw: RawSample, suffix: str, read: Callable[[bytes], _T]) -> _T:
    if suffix not in raw.members:
        raise DataError(f"member {suffix} is missing")
    with prefix_errors(f"member {suffix}"):
        return read(raw.members[suffix])


def _record(data: bytes) -> dict[str, Any]:
    """The fields of :class:`DecodedSample` from the JSON member."""
    record = fields.parse_json(data)
    captions = fields.sequence(record, "captions")
    if not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"has captions {shortened(captions)}, expected a list of texts")
    labelled = record.get("segments_info") is not None
    captioned = record.get("generated_caption") is not None
    return {
        "image_id": fields.integer(record, "image_id"),
        "captions": tuple(captions),
        "labelled": labelled,
        "segments": _segments(fields.sequence(record, "segments_info")) if labelled else (),
        "generated_caption": fields.string(record, "generated_caption") if captioned else None,
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
        raise DataError("has two segments with the same id")
    return segments


def _check_classes(sample: DecodedSample, isthing: Sequence[bool]) -> None:
    """Raise DataError if a label is not a class of the set or of the wrong kind (thing or stuff)."""
    for segment in sample.segments:
        if not 0 <= segment.category < len(isthing) or segment.isthing != isthing[segment.category]:
            kind = "thing" if segment.isthing else "stuff"
            raise DataError(f"member {RECORD} has category {segment.category} ({kind}), unlike {FILE_NAME}")
    for label in () if sample.objects is None else sample.objects.labels.tolist():
        if not 0 <= label < len(isthing) or not isthing[label]:
            raise DataError(f"member {INSTANCES} has category {label}, not a thing of {FILE_NAME}")
    if sample.semantic is not None and sample.semantic.max(initial=-1) >= len(isthing):
        raise DataError(f"member {SEMANTIC} has class {sample.semantic.max()}, which {FILE_NAME} lacks")
