"""Read the lists of COCO annotation files; faulty entries are collected, each with its first fault.

Imports no torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

from odise_pl.data import fields
from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.prepare.coco_vocabulary import FileClasses
from odise_pl.data.prepare.files import SourcePath
from odise_pl.data.prepare.panoptic import format_some
from odise_pl.data.prepare.source import InstanceRecord, Problem, SourceSample, make_key
from odise_pl.data.records import DataError, SegmentRecord, prefix_errors

_MAX_ID = 2**24 - 1
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Annotations(Generic[_Value]):
    """The list ``annotations`` of a file, by image id.

    Attributes:
        file: the annotation file.
        values: the readable entries of each image.
        faults: of the other entries; those without a readable image id are under None.
    """

    file: SourcePath
    values: dict[int, list[_Value]]
    faults: dict[int | None, list[str]]

    def problems(self, image_id: int | None) -> Iterator[Problem]:
        """The faults of an image, listed under the annotation file."""
        for fault in self.faults.get(image_id, ()):
            yield Problem(f"{self.file.display_name} image_id {image_id}", self.file.display_name, fault)


def read_annotations(file: SourcePath, data: Any, read: Callable[[Any, str], _Value]) -> Annotations[_Value]:
    """Read the list ``annotations`` with a function of the entry and its position.

    Raises:
        DataError: the file has no such list.
    """
    values: dict[int, list[_Value]] = defaultdict(list)
    faults: dict[int | None, list[str]] = defaultdict(list)
    for index, item in enumerate(_list_of(data, "annotations", file)):
        where = f"annotations[{index}]"
        image_id: int | None = None
        try:
            image_id = fields.integer(item, "image_id")
            values[image_id].append(read(item, where))
        except DataError as error:
            faults[image_id].append(f"{where} {error}")
    return Annotations(file, values, faults)


def read_panoptic(item: Any, where: str, classes: FileClasses) -> tuple[str, tuple[SegmentRecord, ...]]:
    """The name of the PNG, and its segments."""
    name = fields.file_name(item, "file_name")
    segments = []
    for index, segment in enumerate(fields.sequence(item, "segments_info")):
        with prefix_errors(f"segments_info[{index}]"):
            segments.append(_segment(segment, classes))
    times = Counter(segment.id for segment in segments)
    if repeated := {value for value, count in times.items() if count > 1}:
        raise DataError(f"segments_info has duplicate ids: {format_some(repeated)}")
    return name, tuple(segments)


def _segment(item: Any, classes: FileClasses) -> SegmentRecord:
    index = classes.index_of(fields.integer(item, "category_id"))
    return SegmentRecord(
        id=fields.integer(item, "id", least=1, most=_MAX_ID),
        category=index,
        isthing=classes.vocabulary.isthing[index],
        iscrowd=fields.flag(item, "iscrowd", False),
        area=fields.area(item, "area"),
        bbox=fields.box(item, "bbox"),
    )


def read_object(item: Any, where: str, classes: FileClasses) -> InstanceRecord:
    """An object of an instance file; its segmentation is not checked."""
    return InstanceRecord(
        category=classes.index_of(fields.integer(item, "category_id")),
        iscrowd=fields.flag(item, "iscrowd", False),
        area=fields.area(item, "area"),
        segmentation=fields.segmentation(item, "segmentation"),
        where=f"{where} of {classes.path.name}",
    )


def read_caption(item: Any, where: str) -> str:
    """A caption, which may be empty."""
    return fields.string(item, "caption").strip()


@dataclass(frozen=True)
class ImageEntry:
    """An entry of the list ``images``.

    Attributes:
        where: its position in the file.
        image_id: None if unreadable.
        file_name: empty if unreadable.
        size: height and width; zeros if unreadable.
        fault: the first fault, or empty.
    """

    where: str
    image_id: int | None = None
    file_name: str = ""
    size: tuple[int, int] = (0, 0)
    fault: str = ""


def _image_entry(item: Any, where: str) -> ImageEntry:
    image_id: int | None = None
    name = ""
    try:
        image_id = fields.identifier(item, "id")
        name = fields.file_name(item, "file_name")
        size = fields.positive(item, "height"), fields.positive(item, "width")
    except DataError as error:
        return ImageEntry(where, image_id, name, fault=f"{where} {error}")
    return ImageEntry(where, image_id, name, size)


def _list_of(data: Any, field: str, file: SourcePath) -> list[Any]:
    with prefix_errors(f"{file.path}:"):
        return fields.sequence(data, field)


class ImageList:
    """The list ``images`` of an annotation file.

    Attributes:
        entries: all entries.
        by_id: those with a readable id.

    Raises:
        DataError: the file has no such list.
    """

    def __init__(self, file: SourcePath, data: Any) -> None:
        self._file, items = file, _list_of(data, "images", file)
        self.entries = [_image_entry(item, f"images[{index}]") for index, item in enumerate(items)]
        self.by_id = {entry.image_id: entry for entry in self.entries if entry.image_id is not None}
        self._ids = Counter(entry.image_id for entry in self.entries)
        self._keys = Counter(make_key(entry.file_name) for entry in self.entries if entry.file_name)

    def match(self, folder: SourcePath, *parts: Annotations[Any]) -> tuple[list[SourceSample], list[Problem]]:
        """Samples of the images without faults in this list and in ``parts``, and the problems of others."""
        samples, problems = [], []
        for image in self.entries:
            file = folder.file(image.file_name)
            name = file.display_name if image.file_name else image.where
            faults = [(self._file, fault) for fault in self._faults(image)]
            if image.image_id is not None:
                faults += [
                    (part.file, fault) for part in parts for fault in part.faults.get(image.image_id, ())
                ]
            problems += [Problem(name, where.display_name, fault) for where, fault in faults]
            if not faults and image.image_id is not None:
                key = make_key(image.file_name)
                samples.append(SourceSample(key, name, file, (), image.image_id, image.size))
        return sorted(samples, key=lambda sample: sample.key), problems

    def _faults(self, image: ImageEntry) -> Iterator[str]:
        if image.fault:
            yield image.fault
        if image.image_id is not None and self._ids[image.image_id] > 1:
            yield f"{image.where} has the id {image.image_id} of another image"
        if image.file_name and self._keys[make_key(image.file_name)] > 1:
            yield f"{image.where} has the file_name {image.file_name}, which gives the key of another image"

    def orphans(self, part: Annotations[Any]) -> Iterator[Problem]:
        """Annotations of images that this list lacks."""
        for image_id in (part.values.keys() | part.faults.keys()) - self.by_id.keys():
            yield from part.problems(image_id)
            if values := part.values.get(image_id, ()) if image_id is not None else ():
                name = part.file.display_name
                cause = f"{len(values)} annotations have image_id {image_id}, which images lacks"
                yield Problem(f"{name} image_id {image_id}", name, cause)


def find_unlisted(folder: SourcePath, items: Sequence[Any], what: str) -> Iterator[Problem]:
    """Images on disk that no entry of a list names, faulty entries included."""
    names = (item.get("file_name") for item in items if isinstance(item, dict))
    listed = {PurePosixPath(name).as_posix() for name in names if isinstance(name, str)}
    for name in folder.names():
        if name.lower().endswith(IMAGE_SUFFIXES) and name not in listed:
            shown = folder.file(name).display_name
            yield Problem(shown, shown, f"no entry of {what} lists it")
