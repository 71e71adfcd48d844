"""What a segmenter finds in one image."""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects

from odise_pl.data.label_maps import encode_ids
from odise_pl.errors import SettingError, UserError
from odise_pl.evaluation.writer import instance_results, panoptic_annotation
from odise_pl.files import write_bytes, write_text
from odise_pl.models.inference import NetworkPrediction
from odise_pl.prediction.drawing import paint
from odise_pl.structures import Instances, PanopticSegmentation
from odise_pl.vocabulary import Vocabulary

if TYPE_CHECKING:
    from supervision import Detections

PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class NamedSegment:
    """One segment of an image.

    Attributes:
        id: of its pixels in the map.
        name: of its class.
        isthing: a countable object (True) or stuff (False).
        score: confidence in 0..1.
        area: in pixels.
        box: x, y, width and height in pixels.
    """

    id: int
    name: str
    isthing: bool
    score: float
    area: int
    box: PixelBox
    _ids: NDArray[np.int32] = field(repr=False, compare=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Its pixels [H, W]."""
        return self._ids == self.id


@dataclass(frozen=True)
class NamedInstance:
    """One object of an image; unlike segments, objects may overlap.

    Attributes:
        name: of its class.
        score: confidence in 0..1.
        mask: [H, W], its pixels.
    """

    name: str
    score: float
    mask: NDArray[np.bool_] = field(repr=False, compare=False)

    @property
    def area(self) -> int:
        """In pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> PixelBox:
        """x, y, width and height in pixels; zeros without pixels."""
        for rows, columns in find_objects(self.mask.view(np.int8)):
            return columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
        return 0, 0, 0, 0


class CocoResults(NamedTuple):
    """COCO's formats, as plain data for ``json.dump``.

    Attributes:
        panoptic: with ``images``, ``annotations`` and ``categories``; its PNG is written by
            :meth:`Segmentation.save` as ``NAME_ids.png``.
        instances: a list of scored masks, in COCO's format for results.
    """

    panoptic: dict[str, Any]
    instances: list[dict[str, Any]]


@dataclass(frozen=True)
class Segmentation:
    """What was found in an image.

    Attributes:
        image: upright, RGB.
        vocabulary: what was looked for, without background words.
        prediction: panoptic map, instances and class map, each computed when it is first read. Instances take
            the most memory: a byte for each pixel and instance. Classes after those of the vocabulary are
            background words.
    """

    image: Image.Image
    vocabulary: Vocabulary
    prediction: NetworkPrediction

    @property
    def ids(self) -> NDArray[np.int32]:
        """The panoptic map [H, W]: the segment of each pixel, 0 for none."""
        return self._annotation[1]

    @cached_property
    def segments(self) -> tuple[NamedSegment, ...]:
        """The segments of the panoptic map."""
        names = {category.id: category.name for category in self.vocabulary.categories}
        annotation, ids = self._annotation
        return tuple(
            NamedSegment(
                s["id"],
                names[s["category_id"]],
                bool(s["isthing"]),
                s["score"],
                s["area"],
                tuple(s["bbox"]),
                ids,
            )
            for s in annotation["segments_info"]
        )

    @cached_property
    def semantic(self) -> NDArray[np.int64]:
        """The best word of each pixel [H, W], as its place in the vocabulary; -1 for background words."""
        classes = self.prediction.semantic
        return classes.where(classes < len(self.vocabulary), -1).numpy()

    @cached_property
    def instances(self) -> tuple[NamedInstance, ...]:
        """Objects, the best first; they may overlap, and many have low scores."""
        found = self._instances
        labels, scores = found.labels.tolist(), found.scores.tolist()
        return tuple(
            NamedInstance(self.vocabulary.names[labels[i]], scores[i], found.masks[i].numpy())
            for i in found.scores.argsort(descending=True, stable=True).tolist()
        )

    def plot(self, opacity: float = 0.6) -> Image.Image:
        """The image with coloured, outlined and named segments."""
        return paint(self.image, self._panoptic, self.vocabulary.names, opacity)

    def save(self, folder: Path | str, name: str) -> None:
        """Write ``NAME_segments.png`` (to look at), ``NAME_ids.png`` (COCO's panoptic PNG) and ``NAME.json``.

        The JSON file has names, scores, areas and boxes of the segments.

        Args:
            folder: created if missing.
            name: of the files, without folders.

        Raises:
            SettingError: the name has folders.
            OSError: the folder cannot be written.
        """
        if Path(name).name != name:
            raise SettingError(f"name {name!r}: give a file name without folders")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        annotation, ids = self._annotation
        names = [segment.name for segment in self.segments]
        records = [{"name": n, **s} for n, s in zip(names, annotation["segments_info"], strict=True)]
        shown = io.BytesIO()
        # stronger compression takes six times as long and saves little
        self.plot().save(shown, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        write_bytes(folder / f"{name}_segments.png", shown.getvalue())
        write_bytes(folder / f"{name}_ids.png", encode_ids(ids))
        content = {"file_name": f"{name}_ids.png", "segments": records}
        write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")

    def to_coco(self, image_id: int = 0, file_name: str = "image.jpg") -> CocoResults:
        """The segments and objects in COCO's formats, which panopticapi and pycocotools read.

        Args:
            image_id: of the image.
            file_name: of the image; the panoptic PNG is named ``NAME_ids.png``.
        """
        panoptic = self.to_coco_panoptic(image_id, file_name)
        return CocoResults(panoptic, instance_results(self._instances, self.vocabulary, image_id))

    def to_coco_panoptic(self, image_id: int = 0, file_name: str = "image.jpg") -> dict[str, Any]:
        """The panoptic part of :meth:`to_coco`; objects are not computed."""
        name = f"{Path(file_name).stem}_ids.png"
        image = {"id": image_id, "file_name": file_name, "height": len(self.ids), "width": self.ids.shape[1]}
        return {
            "images": [image],
            "annotations": [self._annotation[0] | {"image_id": image_id, "file_name": name}],
            "categories": [
                {"id": category.id, "name": category.name, "isthing": int(category.isthing)}
                for category in self.vocabulary.categories
            ],
        }

    def to_supervision(self) -> Detections:
        """The segments as ``supervision.Detections``: boxes, masks, scores, class indices and names.

        Raises:
            UserError: the library is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise UserError(
                "to_supervision needs the library supervision: pip install 'odise_pl[formats]'"
            ) from error
        segments, shape = self.segments, self.ids.shape
        names = self.vocabulary.names
        boxes = [(x, y, x + width, y + height) for x, y, width, height in (s.box for s in segments)]
        return Detections(
            xyxy=np.array(boxes, np.float32).reshape(-1, 4),
            mask=np.array([s.mask for s in segments], bool).reshape(-1, *shape),
            confidence=np.array([s.score for s in segments], np.float32),
            class_id=np.array([names.index(s.name) for s in segments], int),
            data={"class_name": np.array([s.name for s in segments], str)},
        )

    @cached_property
    def _annotation(self) -> tuple[dict[str, Any], NDArray[np.int32]]:
        """COCO's panoptic annotation, and the map."""
        return panoptic_annotation(self._panoptic, self.vocabulary, 0, "")

    @cached_property
    def _panoptic(self) -> PanopticSegmentation:
        """The panoptic map without background words."""
        found, listed = self.prediction.panoptic, len(self.vocabulary)
        kept = tuple(segment for segment in found.segments if segment.category < listed)
        if len(kept) == len(found.segments):
            return found
        shown = torch.isin(found.ids, torch.tensor([segment.id for segment in kept], dtype=found.ids.dtype))
        return PanopticSegmentation(found.ids.where(shown, 0), kept)

    @cached_property
    def _instances(self) -> Instances:
        """Objects without background words."""
        found = self.prediction.instances
        kept = found.labels < len(self.vocabulary)
        if kept.all():  # a copy of the masks may take gigabytes
            return found
        return Instances(found.labels[kept], found.scores[kept], found.masks[kept])
