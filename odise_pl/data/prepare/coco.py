"""The COCO panoptic layout, as downloaded or of one's own, packed or unpacked. Imports no torch.

``ROOT/SPLIT/*.jpg``, ``ROOT/annotations/panoptic_SPLIT.json``, ``ROOT/annotations/panoptic_SPLIT/*.png``
and, when there is one, ``ROOT/annotations/captions_SPLIT.json``.
Format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odise_pl.data import fields
from odise_pl.data.files import SourceFile
from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.prepare.coco_json import (
    AnnotationEntry,
    ImageEntry,
    ObjectsByImage,
    annotation_entries,
    caption_entries,
    image_entries,
    objects_by_image,
)
from odise_pl.data.prepare.coco_vocabulary import FileClasses, choose_classes, match_classes
from odise_pl.data.prepare.tree import Folder, Tree, add_root, below
from odise_pl.data.prepare.validate import examine_panoptic, verbatim_members
from odise_pl.data.records import DataError, Problem, Source, SourceSample, key_of

HINT = "download COCO 2017 from https://cocodataset.org/#download, or see data/README.md for your own data"


@dataclass(frozen=True)
class Layout:
    """Where the parts of a split are.

    Attributes:
        split: name of the split.
        images: folder of the images.
        annotations: the panoptic annotation file.
        panoptic: folder of the panoptic PNGs.
        captions: the caption annotation file, if there is one beside ``annotations``.
        instances: the instance annotation file, if there is one beside ``annotations``.
        notes: what a user should know.
    """

    split: str
    images: Folder
    annotations: SourceFile
    panoptic: Folder
    captions: SourceFile | None
    instances: SourceFile | None
    notes: tuple[str, ...]


def find_layout(tree: Tree, split: str) -> Layout:
    """Find the parts of a split.

    Raises:
        DataError: one is missing; the message says which and where COCO comes from.
    """
    archive = "panoptic_annotations_trainval2017.zip"
    split = below("--split", split)
    images = tree.need_folder(split, f"{split}.zip")
    panoptic = f"annotations/panoptic_{split}"
    annotations = tree.need_file(f"{panoptic}.json", archive)
    optional = [f"annotations/{kind}_{split}.json" for kind in ("captions", "instances")]
    captions, instances = (tree.beside(f"{panoptic}.json", path) for path in optional)
    apart = [p for p, file in zip(optional, (captions, instances), strict=True) if not file and tree.has(p)]
    return Layout(
        split,
        images,
        annotations,
        tree.need_folder(panoptic, f"panoptic_{split}.zip inside {archive}"),
        captions,
        instances,
        tuple(f"{path} is not in the folder of {annotations.path.name}, so it is not used" for path in apart),
    )


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add ``coco`` to the prepare command."""
    parser = commands.add_parser("coco", help="COCO panoptic, or a folder of one's own in its layout")
    add_root(parser)
    parser.add_argument("--split", required=True, help="train2017, val2017, or the name of one's own")
    parser.add_argument(
        "--vocabulary",
        default="auto",
        help="auto (default): coco_panoptic if the annotation file lists exactly its categories, else "
        "those of the file; annotation: those of the file; or a packaged vocabulary or a vocabulary file",
    )
    parser.set_defaults(read=lambda options: read_coco(options.root, options.split, options.vocabulary))


def read_coco(root: Path | Sequence[Path], split: str, vocabulary: str = "auto") -> Source:
    """Read the annotation of a split and match it with the files on disk, which stay unopened.

    Raises:
        DataError: a part of the layout is missing or unusable as a whole; faults of single samples are
            collected in :attr:`Source.problems`.
    """
    layout = find_layout(Tree(root, HINT), split)
    data = fields.read_json(layout.annotations)
    classes = choose_classes(data, layout.annotations.path, vocabulary, f"coco_{split}")
    images = list(image_entries(fields.list_of(data, "images", layout.annotations.path)))
    annotations = fields.list_of(data, "annotations", layout.annotations.path)
    matcher = _Matcher(layout, {image.id: image for image in images if image.id is not None})
    matcher.read_captions()
    matcher.read_instances(classes)
    matcher.match(images, list(annotation_entries(annotations, classes)))
    return Source(
        dataset="coco",
        split=split,
        annotations=layout.annotations.path.name,
        sha256=_sha256(layout),
        vocabulary=classes.vocabulary,
        samples=tuple(sorted(matcher.samples, key=lambda sample: sample.key)),
        problems=tuple(matcher.problems),
        notes=(*classes.notes, *layout.notes, *matcher.notes),
        examine=examine_panoptic,
        members=verbatim_members,
    )


def _sha256(layout: Layout) -> str:
    """Of what is annotated; the objects have a file of their own."""
    digest = hashlib.sha256(layout.annotations.read())
    digest.update(b"" if layout.instances is None else layout.instances.read())
    return digest.hexdigest()


class Repeated:
    """Ids and names that must be unique and are not."""

    def __init__(self, images: list[ImageEntry]) -> None:
        self._ids = Counter(image.id for image in images)
        self._names = Counter(image.file_name for image in images)
        self._keys = Counter(key_of(name) for name in self._names if name)

    def faults(self, image: ImageEntry) -> Iterator[str]:
        if image.id is not None and self._ids[image.id] > 1:
            yield f"has the id {image.id} of another image"
        if not image.file_name:
            return
        if self._names[image.file_name] > 1:
            yield f"has the file_name {image.file_name} of another image"
        if self._keys[key_of(image.file_name)] > 1:
            yield f"has the file_name {image.file_name}, which gives the key of another image"


@dataclass
class _Matcher:
    """Brings images, annotations, captions and files together, and notes what is left over."""

    layout: Layout
    images: dict[int, ImageEntry]  # by id
    samples: list[SourceSample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    captions: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    objects: ObjectsByImage | None = None

    def match(self, images: list[ImageEntry], annotations: list[AnnotationEntry]) -> None:
        by_image: dict[int | None, list[AnnotationEntry]] = defaultdict(list)
        for annotation in annotations:
            by_image[annotation.image_id].append(annotation)
        repeated = Repeated(images)
        for image in images:
            self._match_image(image, by_image.get(image.id, []), repeated)
        ids = {image.id for image in images} - {None}
        self._report_orphans([a for a in annotations if a.image_id not in ids])
        self._report_unlisted(self.layout.images, {image.file_name for image in images}, "images")
        self._report_unlisted(self.layout.panoptic, {a.file_name for a in annotations}, "annotations")

    def _match_image(self, image: ImageEntry, annotations: list[AnnotationEntry], repeated: Repeated) -> None:
        sample = f"{self.layout.split}/{image.file_name}" if image.file_name else image.where
        causes = [f"{image.where} {fault}" for fault in (*image.faults, *repeated.faults(image))]
        if image.id is not None and not annotations:
            causes.append(f"no annotation has image_id {image.id} ({image.file_name})")
        if len(annotations) > 1:
            causes.append(f"{len(annotations)} annotations have image_id {image.id} ({image.file_name})")
        causes += [f"{entry.where} {fault}" for entry in annotations for fault in entry.faults]
        if self.objects is not None:
            self._report(sample, self.objects.file, self.objects.faults.get(image.id, ()))
        self._report(sample, self.layout.annotations, causes)
        if not causes and not (self.objects and self.objects.faults.get(image.id)):
            self.samples.append(self._sample(sample, image, annotations[0]))

    def _sample(self, name: str, image: ImageEntry, annotation: AnnotationEntry) -> SourceSample:
        assert image.id is not None  # an image without id has a fault
        return SourceSample(
            key=key_of(image.file_name),
            name=name,
            image=self.layout.images.file(image.file_name),
            labels=(self.layout.panoptic.file(annotation.file_name),),
            image_id=image.id,
            size=image.size,
            segments=annotation.segments,
            captions=tuple(self.captions.get(image.id, ())),
            instances=None if self.objects is None else tuple(self.objects.records.get(image.id, ())),
        )

    def _report(self, sample: str, file: SourceFile, causes: Iterable[str]) -> None:
        self.problems.extend(Problem(sample, file.shown, cause) for cause in causes)

    def _report_orphans(self, annotations: Iterable[AnnotationEntry]) -> None:
        for entry in annotations:
            causes = [f"{entry.where} {fault}" for fault in entry.faults]
            if entry.image_id is not None:
                causes.append(f"{entry.where} has image_id {entry.image_id}, which images lacks")
            sample = self.layout.panoptic.file(entry.file_name or entry.where).shown
            self._report(sample, self.layout.annotations, causes)

    def _report_unlisted(self, folder: Folder, listed: set[str], what: str) -> None:
        self.problems.extend(unlisted(folder, listed, f"{what} in {self.layout.annotations.path.name}"))

    def read_instances(self, classes: FileClasses) -> None:
        """Collect the objects by image: COCO's masks of objects overlap, as segments cannot."""
        file = self.layout.instances
        if file is None:
            return
        data, images = self._read_beside(file)
        fields.list_of(data, "images", file.path)
        self.objects = objects_by_image(file, data, match_classes(data, file.path, classes))
        self._compare(images, self.objects)
        self._report(file.shown, file, self.objects.faults.get(None, ()))
        left = sum(
            len(some) for image_id, some in self.objects.records.items() if image_id not in self.images
        )
        if left:
            self.notes.append(f"{left} objects are of images that this split does not list; they are skipped")

    def _compare(self, theirs: Iterable[ImageEntry], objects: ObjectsByImage) -> None:
        """An image without objects has to be listed, too: else its objects are not known."""
        listed = {entry.id: entry for entry in theirs}
        for image_id, image in self.images.items():
            entry = listed.get(image_id)
            faults = objects.faults.setdefault(image_id, [])
            if entry is None:
                faults.append(
                    f"no entry of images has id {image_id} ({image.file_name}), so its objects are not known"
                )
            elif entry.faults:
                faults += [f"{entry.where} {fault}" for fault in entry.faults]
            elif entry.size != image.size:
                here, ours = list(entry.size), self.layout.annotations.path.name
                faults.append(f"{entry.where} has height and width {here}, {ours} says {list(image.size)}")

    def _read_beside(self, file: SourceFile) -> tuple[Any, list[ImageEntry]]:
        """A file beside the panoptic one, which must mean the same images by the same ids, and its images.

        Raises:
            DataError: it cannot be read, or lists an image of another name.
        """
        data = fields.read_json(file)
        images = data.get("images") if isinstance(data, Mapping) else None
        entries = list(image_entries(images if isinstance(images, list) else ()))
        for entry in entries:
            ours = self.images[entry.id].file_name if entry.id in self.images else None
            if ours and entry.file_name and Path(entry.file_name).stem != Path(ours).stem:
                raise DataError(
                    f"{file.path}: {entry.where} has id {entry.id} and file_name {entry.file_name}, but the "
                    f"image of this id is {ours} in {self.layout.annotations.path.name}: give it the same ids"
                )
        return data, entries

    def read_captions(self) -> None:
        """Collect the captions by image; those of images that the split lacks are only counted."""
        file = self.layout.captions
        if file is None:
            return
        items = fields.list_of(self._read_beside(file)[0], "annotations", file.path)
        left: Counter[str] = Counter()
        for entry in caption_entries(items):
            self._report(
                f"{file.shown} {entry.where}", file, [f"{entry.where} {fault}" for fault in entry.faults]
            )
            if entry.image_id is None or entry.faults:
                continue
            if entry.image_id not in self.images:
                left["are of images that this split does not list"] += 1
            elif not entry.caption:
                left["are empty"] += 1
            else:
                self.captions[entry.image_id].append(entry.caption)
        self.notes += [f"{count} captions {why}; they are left out" for why, count in left.items()]


def unlisted(folder: Folder, listed: set[str], what: str) -> Iterator[Problem]:
    """Images on disk that no entry of the annotation file names."""
    for name in folder.names():
        if name.lower().endswith(IMAGE_SUFFIXES) and name not in listed:
            shown = folder.file(name).shown
            yield Problem(shown, shown, f"no entry of {what} names it")
