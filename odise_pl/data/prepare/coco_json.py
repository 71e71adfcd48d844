"""Entries of COCO annotation files, read so that every fault of an entry is kept. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from odise_pl.data import fields
from odise_pl.data.files import SourceFile
from odise_pl.data.prepare.coco_vocabulary import FileClasses
from odise_pl.data.prepare.validate import shown
from odise_pl.data.records import DataError, InstanceRecord, SegmentRecord

_LARGEST_ID = 2**24 - 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageEntry:
    """An entry of ``images``.

    Attributes:
        where: the entry's place in the file, for messages.
        id: None if it is unreadable.
        file_name: empty if it is unreadable.
        size: height and width, zeros if unreadable.
        faults: what is wrong with the entry.
    """

    where: str
    id: int | None
    file_name: str
    size: tuple[int, int]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class AnnotationEntry:
    """An entry of ``annotations``: the PNG of an image and its segments; fields as in :class:`ImageEntry`."""

    where: str
    image_id: int | None
    file_name: str
    segments: tuple[SegmentRecord, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class CaptionEntry:
    """An entry of ``annotations`` in a caption file; fields as in :class:`ImageEntry`."""

    where: str
    image_id: int | None
    caption: str
    faults: tuple[str, ...]


@dataclass(frozen=True)
class InstanceEntry:
    """An entry of ``annotations`` in an instance file: one object; fields as in :class:`ImageEntry`."""

    where: str
    image_id: int | None
    record: InstanceRecord
    faults: tuple[str, ...]


@dataclass(frozen=True)
class ObjectsByImage:
    """The objects of an instance annotation file, and what is wrong with them, by image id."""

    file: SourceFile
    records: dict[int | None, list[InstanceRecord]]
    faults: dict[int | None, list[str]]


class _Faults(list[str]):
    """Turns the first fault of each field into text, so that the next field is read too."""

    def read(self, default: _T, read: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return read(*arguments)
        except DataError as error:
            self.append(str(error))
            return default


def image_entries(items: Iterable[Any]) -> Iterator[ImageEntry]:
    """Read the list ``images``."""
    for index, item in enumerate(items):
        faults = _Faults()
        size = tuple(faults.read(0, fields.positive, item, side) for side in ("height", "width"))
        yield ImageEntry(
            f"images[{index}]",
            faults.read(None, fields.identifier, item, "id"),
            faults.read("", fields.file_name, item, "file_name"),
            (size[0], size[1]),
            _distinct(faults),
        )


def annotation_entries(items: Iterable[Any], classes: FileClasses) -> Iterator[AnnotationEntry]:
    """Read the list ``annotations`` of a panoptic file."""
    for index, item in enumerate(items):
        faults = _Faults()
        image_id = faults.read(None, fields.integer, item, "image_id")
        file_name = faults.read("", fields.file_name, item, "file_name")
        segments = _segments(faults.read([], fields.sequence, item, "segments_info"), classes, faults)
        yield AnnotationEntry(f"annotations[{index}]", image_id, file_name, segments, _distinct(faults))


def instance_entries(items: Iterable[Any], classes: FileClasses, file: SourceFile) -> Iterator[InstanceEntry]:
    """Read the list ``annotations`` of an instance file; segmentations are taken as they are."""
    for index, item in enumerate(items):
        faults, where = _Faults(), f"annotations[{index}]"
        image_id = faults.read(None, fields.integer, item, "image_id")
        category = faults.read(None, fields.integer, item, "category_id")
        record = InstanceRecord(
            category=0 if category is None else faults.read(0, classes.index_of, category),
            iscrowd=faults.read(False, fields.flag, item, "iscrowd", False),
            area=faults.read(0.0, fields.area, item, "area"),
            segmentation=faults.read([], fields.segmentation, item, "segmentation"),
            where=f"{where} of {file.path.name}",
        )
        if isinstance(item, Mapping) and "bbox" in item:  # nothing needs it, but it tells a damaged entry
            faults.read(None, fields.box, item, "bbox")
        yield InstanceEntry(where, image_id, record, _distinct(faults))


def objects_by_image(file: SourceFile, content: Any, classes: FileClasses) -> ObjectsByImage:
    """Sort the content of an instance annotation file; ``classes`` are those of this file.

    Raises:
        DataError: the content is unusable as a whole.
    """
    records: dict[int | None, list[InstanceRecord]] = defaultdict(list)
    faults: dict[int | None, list[str]] = defaultdict(list)
    for entry in instance_entries(fields.list_of(content, "annotations", file.path), classes, file):
        records[entry.image_id].append(entry.record)
        if entry.faults:
            faults[entry.image_id] += [f"{entry.where} {fault}" for fault in entry.faults]
    return ObjectsByImage(file, dict(records), dict(faults))


def caption_entries(items: Iterable[Any]) -> Iterator[CaptionEntry]:
    """Read the list ``annotations`` of a caption file."""
    for index, item in enumerate(items):
        faults = _Faults()
        image_id = faults.read(None, fields.integer, item, "image_id")
        caption = faults.read("", fields.string, item, "caption").strip()
        yield CaptionEntry(f"annotations[{index}]", image_id, caption, _distinct(faults))


def _segments(items: list[Any], classes: FileClasses, faults: _Faults) -> tuple[SegmentRecord, ...]:
    segments = []
    for index, item in enumerate(items):
        own = _Faults()
        segment = _segment(item, classes, own)
        faults.extend(f"segments_info[{index}] {fault}" for fault in _distinct(own))
        segments.append(segment)
    repeated = _repeated(segment.id for segment in segments)
    if repeated:
        faults.append(f"segments_info has ids twice: {shown(repeated)}")
    return tuple(segments)


def _segment(item: Any, classes: FileClasses, faults: _Faults) -> SegmentRecord:
    category = faults.read(None, fields.integer, item, "category_id")
    index = 0 if category is None else faults.read(0, classes.index_of, category)
    return SegmentRecord(
        id=faults.read(0, _segment_id, item),
        category=index,
        isthing=classes.vocabulary.isthing[index],
        iscrowd=faults.read(False, fields.flag, item, "iscrowd", False),
        area=faults.read(0.0, fields.area, item, "area"),
        bbox=faults.read((), fields.box, item, "bbox"),
    )


def _segment_id(item: Any) -> int:
    value = fields.integer(item, "id")
    if not 1 <= value <= _LARGEST_ID:
        raise DataError(f"has id {value}; ids of segments are 1 to {_LARGEST_ID}")
    return value


def _repeated(values: Iterable[int]) -> set[int]:
    times = Counter(values)
    return {value for value, count in times.items() if value and count > 1}


def _distinct(faults: Iterable[str]) -> tuple[str, ...]:
    # An entry that is no object gives the same fault for each of its fields.
    return tuple(dict.fromkeys(faults))
