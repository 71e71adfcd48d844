"""From the bytes of a sample to its image, its id map and what the ids mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from odise_pl.data.images import decode_ids, decode_rgb, decode_semantic, unique_ids
from odise_pl.data.instances import Objects, read_objects
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

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.image.height, self.image.width


def decode(raw: RawSample) -> DecodedSample:
    """Decode a sample.

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
    )
    return _with_labels(raw, plain) if labelled else plain


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
    try:
        record = json.loads(data)
        return {
            "image_id": int(record["image_id"]),
            "captions": tuple(record["captions"]),
            "segments": _segments(record.get("segments_info")),
            "generated_caption": _text(record.get("generated_caption")),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"is not the record of a sample ({type(error).__name__}: {error})") from error


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"generated_caption {value!r} is no text")
    return value


def _segments(items: list[dict[str, Any]] | None) -> tuple[Segment, ...] | None:
    if items is None:
        return None
    return tuple(
        Segment(int(s["id"]), int(s["category"]), bool(s["isthing"]), bool(s["iscrowd"])) for s in items
    )
