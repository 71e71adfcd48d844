"""Data sets in COCO's panoptic layout, in folders or archives. Imports no torch.

``ROOT/SPLIT/*.jpg``, ``ROOT/annotations/panoptic_SPLIT.json``, ``ROOT/annotations/panoptic_SPLIT/*.png``
and, optionally, ``ROOT/annotations/captions_SPLIT.json`` and ``ROOT/annotations/instances_SPLIT.json``.
Format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odise_pl.data import fields
from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.prepare.coco_json import (
    AnnotationEntry,
    ImageEntry,
    ObjectsByImage,
    annotation_entries,
    caption_entries,
    image_entries,
    list_of,
    objects_by_image,
)
from odise_pl.data.prepare.coco_vocabulary import FileClasses, choose_classes, match_classes
from odise_pl.data.prepare.files import SourceFile
from odise_pl.data.prepare.panoptic import check_panoptic, pack_panoptic
from odise_pl.data.prepare.source import Problem, Source, SourceSample, make_key
from odise_pl.data.prepare.tree import Folder, Tree
from odise_pl.data.records import DataError, prefix_errors

HINT = "download COCO 2017 from https://cocodataset.org/#download, or see data/README.md for other data"
_ARCHIVE = "panoptic_annotations_trainval2017.zip"


@dataclass(frozen=True)
class _Layout:
    """The parts of a split; captions and instances are optional."""

    split: str
    images: Folder
    annotations: SourceFile
    panoptic: Folder
    captions: SourceFile | None
    instances: SourceFile | None
    notes: tuple[str, ...]


def _find_layout(tree: Tree, split: str) -> _Layout:
    split = parse_subpath("--split", split)
    images = tree.need_folder(split, f"{split}.zip")
    annotations = tree.need_file(f"annotations/panoptic_{split}.json", _ARCHIVE)
    maps = tree.need_folder(
        f"annotations/panoptic_{split}", f"panoptic_{split}.zip inside {_ARCHIVE}, which must be unpacked"
    )
    optional = [f"{kind}_{split}.json" for kind in ("captions", "instances")]
    captions, instances = (tree.beside(annotations, name) for name in optional)
    notes = tuple(
        f"annotations/{name} is not in the folder of {annotations.path.name}, so it is ignored"
        for name, file in zip(optional, (captions, instances), strict=True)
        if file is None and tree.has_file(f"annotations/{name}")
    )
    return _Layout(split, images, annotations, maps, captions, instances, notes)


def parse_subpath(option: str, path: str) -> str:
    """Check the value of an option that names a path below a root."""
    with prefix_errors(option):
        return fields.plain_path(path)


def read_coco(root: Path | Sequence[Path], split: str, vocabulary: str = "auto") -> Source:
    """Read the annotation of a split and match it with the files on disk, without reading these.

    Args:
        root: one or more folders or archives.
        split: for example ``train2017``.
        vocabulary: see :func:`choose_classes`.

    Raises:
        DataError: a part of the layout is missing or unusable as a whole; faults of single samples are
            collected in :attr:`Source.problems`.
    """
    layout = _find_layout(Tree(root, HINT), split)
    path, data = layout.annotations.path, layout.annotations.read_json()
    classes = choose_classes(data, path, vocabulary, f"coco_{split}")
    images = image_entries(list_of(data, "images", path))
    matcher = _Matcher(layout, {image.image_id: image for image in images if image.image_id is not None})
    matcher.read_captions()
    matcher.read_instances(classes)
    matcher.match(images, annotation_entries(list_of(data, "annotations", path), classes))
    annotated = [file.read() for file in (layout.annotations, layout.instances) if file is not None]
    return Source(
        dataset="coco",
        split=split,
        annotations=path.name,
        sha256=hashlib.sha256(b"".join(annotated)).hexdigest(),
        vocabulary=classes.vocabulary,
        samples=tuple(sorted(matcher.samples, key=lambda sample: sample.key)),
        problems=tuple(matcher.problems),
        notes=(*classes.notes, *layout.notes, *matcher.notes),
        check=check_panoptic,
        pack=pack_panoptic,
    )


class Duplicates:
    """Ids, file names and keys that several images have."""

    def __init__(self, images: list[ImageEntry]) -> None:
        self._ids = Counter(image.image_id for image in images)
        self._names = Counter(image.file_name for image in images)
        self._keys = Counter(make_key(name) for name in self._names if name)

    def causes(self, image: ImageEntry) -> list[str]:
        """All faults of an image."""
        return [*image.causes, *(f"{image.where} {fault}" for fault in self._faults(image))]

    def _faults(self, image: ImageEntry) -> Iterator[str]:
        if image.image_id is not None and self._ids[image.image_id] > 1:
            yield f"has the id {image.image_id} of another image"
        if not image.file_name:
            return
        if self._names[image.file_name] > 1:
            yield f"has the file_name {image.file_name} of another image"
        if self._keys[make_key(image.file_name)] > 1:
            yield f"has the file_name {image.file_name}, which gives the key of another image"


@dataclass
class _Matcher:
    """Matches images with annotations, captions, objects and files, and collects problems."""

    layout: _Layout
    images: dict[int, ImageEntry]  # by id
    samples: list[SourceSample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    captions: dict[int | None, list[str]] = field(default_factory=lambda: defaultdict(list))
    objects: ObjectsByImage | None = None

    def match(self, images: list[ImageEntry], annotations: list[AnnotationEntry]) -> None:
        by_image: dict[int | None, list[AnnotationEntry]] = defaultdict(list)
        for annotation in annotations:
            by_image[annotation.image_id].append(annotation)
        duplicates = Duplicates(images)
        for image in images:
            self._match_image(image, by_image.get(image.image_id, []), duplicates)
        for annotation in annotations:
            if annotation.image_id not in self.images:
                self._report_orphan(annotation)
        where = self.layout.annotations.path.name
        self.problems += find_unlisted(
            self.layout.images, {i.file_name for i in images}, f"images in {where}"
        )
        names = {annotation.file_name for annotation in annotations}
        self.problems += find_unlisted(self.layout.panoptic, names, f"annotations in {where}")

    def _match_image(
        self, image: ImageEntry, annotations: list[AnnotationEntry], duplicates: Duplicates
    ) -> None:
        name = f"{self.layout.split}/{image.file_name}" if image.file_name else image.where
        causes = duplicates.causes(image)
        if image.image_id is not None and len(annotations) != 1:
            found = f"{len(annotations) or 'no'} annotation{'s have' if annotations else ' has'}"
            causes.append(f"{found} image_id {image.image_id} ({image.file_name})")
        causes += [cause for entry in annotations for cause in entry.causes]
        wrong_objects = self.objects.faults.get(image.image_id, []) if self.objects else []
        if self.objects:
            self._report(name, self.objects.file, wrong_objects)
        self._report(name, self.layout.annotations, causes)
        if not causes and not wrong_objects:
            self.samples.append(self._sample(name, image, annotations[0]))

    def _sample(self, name: str, image: ImageEntry, annotation: AnnotationEntry) -> SourceSample:
        assert image.image_id is not None  # an image without id has a fault
        return SourceSample(
            key=make_key(image.file_name),
            name=name,
            image=self.layout.images.file(image.file_name),
            labels=(self.layout.panoptic.file(annotation.file_name),),
            image_id=image.image_id,
            size=image.size,
            segments=annotation.segments,
            captions=tuple(self.captions.get(image.image_id, ())),
            instances=tuple(self.objects.records.get(image.image_id, ())) if self.objects else None,
        )

    def _report(self, sample: str, file: SourceFile, causes: Iterable[str]) -> None:
        self.problems.extend(Problem(sample, file.display_name, cause) for cause in causes)

    def _report_orphan(self, entry: AnnotationEntry) -> None:
        causes = entry.causes
        if entry.image_id is not None:
            causes.append(f"{entry.where} has image_id {entry.image_id}, which images lacks")
        name = self.layout.panoptic.file(entry.file_name or entry.where).display_name
        self._report(name, self.layout.annotations, causes)

    def read_instances(self, classes: FileClasses) -> None:
        """Collect the objects by image; unlike segments, their masks may overlap."""
        file = self.layout.instances
        if file is None:
            return
        data, images = self._read_beside(file)
        list_of(data, "images", file.path)
        objects = self.objects = objects_by_image(file, data, match_classes(data, file.path, classes))
        for image_id, image in self.images.items():
            objects.faults.setdefault(image_id, []).extend(
                self._find_differences(image, images.get(image_id))
            )
        self._report(file.display_name, file, objects.faults.get(None, ()))
        skipped = sum(len(some) for image_id, some in objects.records.items() if image_id not in self.images)
        if skipped:
            self.notes.append(f"{skipped} objects are skipped, because this split does not list their images")

    def _find_differences(self, image: ImageEntry, entry: ImageEntry | None) -> list[str]:
        """Faults of an image in the instance file, which must also list images without objects."""
        if entry is None:
            name = f"{image.image_id} ({image.file_name})"
            return [f"no entry of images has id {name}, so its objects are unknown"]
        if entry.size == image.size or entry.faults:
            return entry.causes
        ours = f"{self.layout.annotations.path.name} says {list(image.size)}"
        return [f"{entry.where} has height and width {list(entry.size)}, {ours}"]

    def _read_beside(self, file: SourceFile) -> tuple[Any, dict[int | None, ImageEntry]]:
        """Read an optional annotation file; returns its content, and its images by id.

        Raises:
            DataError: it cannot be read, or an id refers to another image than in the panoptic file.
        """
        data = file.read_json()
        images = data.get("images") if isinstance(data, Mapping) else None
        entries = image_entries(images if isinstance(images, list) else ())
        for entry in entries:
            ours = self.images[entry.image_id].file_name if entry.image_id in self.images else None
            if ours and entry.file_name and Path(entry.file_name).stem != Path(ours).stem:
                raise DataError(
                    f"{file.path}: {entry.where} has id {entry.image_id} and file_name {entry.file_name}, "
                    f"but in {self.layout.annotations.path.name} this id is {ours}: use the same ids"
                )
        return data, {entry.image_id: entry for entry in entries}

    def read_captions(self) -> None:
        """Collect the captions by image; captions of images of other splits are only counted."""
        file = self.layout.captions
        if file is None:
            return
        skipped: Counter[str] = Counter()
        for entry in caption_entries(list_of(self._read_beside(file)[0], "annotations", file.path)):
            self._report(f"{file.display_name} {entry.where}", file, entry.causes)
            if entry.faults:
                continue
            if entry.image_id not in self.images:
                skipped["of images that this split does not list"] += 1
            elif not entry.caption:
                skipped["without text"] += 1
            else:
                self.captions[entry.image_id].append(entry.caption)
        self.notes += [f"{count} captions {which} are skipped" for which, count in skipped.items()]


def find_unlisted(folder: Folder, listed: set[str], what: str) -> Iterator[Problem]:
    """Images on disk that the annotation file does not list."""
    for name in folder.names():
        if name.lower().endswith(IMAGE_SUFFIXES) and name not in listed:
            shown = folder.file(name).display_name
            yield Problem(shown, shown, f"no entry of {what} lists it")
