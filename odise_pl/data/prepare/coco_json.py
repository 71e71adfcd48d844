"""Read the entries of COCO annotation files and collect all their faults. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from odise_pl.data import fields
from odise_pl.data.prepare.coco_vocabulary import FileClasses
from odise_pl.data.prepare.files import SourceFile
from odise_pl.data.prepare.panoptic import format_some
from odise_pl.data.prepare.source import InstanceRecord
from odise_pl.data.records import DataError, SegmentRecord, prefix_errors

_MAX_ID = 2**24 - 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    """An entry of a list in an annotation file.

    Attributes:
        where: its position in the file.
        image_id: id of the image that it is or belongs to; None if unreadable.
        faults: all faults.
    """

    where: str
    image_id: int | None
    faults: tuple[str, ...]

    @property
    def causes(self) -> list[str]:
        """The faults, with the position."""
        return [f"{self.where} {fault}" for fault in self.faults]


@dataclass(frozen=True)
class ImageEntry(Entry):
    """An entry of ``images``; unreadable fields are empty or 0."""

    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class AnnotationEntry(Entry):
    """An entry of ``annotations``: the name of the PNG, empty if unreadable, and its segments."""

    file_name: str
    segments: tuple[SegmentRecord, ...]


@dataclass(frozen=True)
class CaptionEntry(Entry):
    """An entry of ``annotations`` in a caption file."""

    caption: str


@dataclass(frozen=True)
class ObjectsByImage:
    """The objects of an instance file and their faults, by image id."""

    file: SourceFile
    records: dict[int | None, list[InstanceRecord]]
    faults: dict[int | None, list[str]]


def list_of(data: Any, field: str, path: Path) -> list[Any]:
    """A list at the top level of an annotation file; DataError if it is missing."""
    with prefix_errors(f"{path}:"):
        return fields.sequence(data, field)


class _Faults(list[str]):
    """Collects the faults of fields, so that all fields are read."""

    def read(self, default: _T, read: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return read(*arguments)
        except DataError as error:
            self.append(str(error))
            return default

    @property
    def distinct(self) -> tuple[str, ...]:
        """The distinct faults: an entry that is not an object gives the same fault for each field."""
        return tuple(dict.fromkeys(self))


def image_entries(items: Iterable[Any]) -> list[ImageEntry]:
    """Read the list ``images``."""
    entries = []
    for index, item in enumerate(items):
        faults = _Faults()
        height, width = (faults.read(0, fields.positive, item, side) for side in ("height", "width"))
        image_id = faults.read(None, fields.identifier, item, "id")
        name = faults.read("", fields.file_name, item, "file_name")
        entries.append(ImageEntry(f"images[{index}]", image_id, faults.distinct, name, (height, width)))
    return entries


def annotation_entries(items: Iterable[Any], classes: FileClasses) -> list[AnnotationEntry]:
    """Read the list ``annotations`` of a panoptic file."""
    entries = []
    for index, item in enumerate(items):
        faults = _Faults()
        image_id = faults.read(None, fields.integer, item, "image_id")
        name = faults.read("", fields.file_name, item, "file_name")
        segments = _segments(faults.read([], fields.sequence, item, "segments_info"), classes, faults)
        entries.append(AnnotationEntry(f"annotations[{index}]", image_id, faults.distinct, name, segments))
    return entries


def caption_entries(items: Iterable[Any]) -> Iterator[CaptionEntry]:
    """Read the list ``annotations`` of a caption file."""
    for index, item in enumerate(items):
        faults = _Faults()
        image_id = faults.read(None, fields.integer, item, "image_id")
        caption = faults.read("", fields.string, item, "caption").strip()
        yield CaptionEntry(f"annotations[{index}]", image_id, faults.distinct, caption)


def objects_by_image(file: SourceFile, content: Any, classes: FileClasses) -> ObjectsByImage:
    """Read the list ``annotations`` of an instance file with its classes.

    Raises:
        DataError: the whole file is unusable.
    """
    records: dict[int | None, list[InstanceRecord]] = defaultdict(list)
    causes: dict[int | None, list[str]] = defaultdict(list)
    for index, item in enumerate(list_of(content, "annotations", file.path)):
        faults, where = _Faults(), f"annotations[{index}]"
        image_id = faults.read(None, fields.integer, item, "image_id")
        records[image_id].append(_instance(item, f"{where} of {file.path.name}", classes, faults))
        if faults:
            causes[image_id] += Entry(where, image_id, faults.distinct).causes
    return ObjectsByImage(file, dict(records), dict(causes))


def _instance(item: Any, where: str, classes: FileClasses, faults: _Faults) -> InstanceRecord:
    """Read an object without checking its segmentation."""
    if isinstance(item, Mapping) and "bbox" in item:  # unused, but shows a damaged entry
        faults.read(None, fields.box, item, "bbox")
    return InstanceRecord(
        category=_category(item, classes, faults),
        iscrowd=faults.read(False, fields.flag, item, "iscrowd", False),
        area=faults.read(0.0, fields.area, item, "area"),
        segmentation=faults.read([], fields.segmentation, item, "segmentation"),
        where=where,
    )


def _category(item: Any, classes: FileClasses, faults: _Faults) -> int:
    category = faults.read(None, fields.integer, item, "category_id")
    return 0 if category is None else faults.read(0, classes.index_of, category)


def _segments(items: list[Any], classes: FileClasses, faults: _Faults) -> tuple[SegmentRecord, ...]:
    segments = []
    for index, item in enumerate(items):
        own = _Faults()
        segments.append(_segment(item, classes, own))
        faults.extend(f"segments_info[{index}] {fault}" for fault in own.distinct)
    times = Counter(segment.id for segment in segments if segment.id)
    if repeated := {value for value, count in times.items() if count > 1}:
        faults.append(f"segments_info has duplicate ids: {format_some(repeated)}")
    return tuple(segments)


def _segment(item: Any, classes: FileClasses, faults: _Faults) -> SegmentRecord:
    index = _category(item, classes, faults)
    return SegmentRecord(
        id=faults.read(0, _segment_id, item),
        category=index,
        isthing=classes.vocabulary.isthing[index],
        iscrowd=faults.read(False, fields.flag, item, "iscrowd", False),
        area=faults.read(0.0, fields.area, item, "area"),
        bbox=faults.read((), fields.box, item, "bbox"),
    )


def _segment_id(item: Any) -> int:
    return fields.integer(item, "id", least=1, most=_MAX_ID)
