"""What a segmenter finds in one image."""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from odise_pl.data.label_maps import encode_ids
from odise_pl.evaluation.writer import panoptic_annotation
from odise_pl.files import write_bytes, write_text
from odise_pl.models.inference import NetworkPrediction
from odise_pl.prediction.drawing import paint
from odise_pl.vocabulary import Vocabulary


class NamedSegment(NamedTuple):
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
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Segmentation:
    """What was found in an image.

    Attributes:
        image: upright, RGB.
        vocabulary: what was looked for.
        prediction: panoptic map, instances and class map, each computed when it is first read. Instances take
            the most memory: a byte for each pixel and instance.
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
        return tuple(
            NamedSegment(s["id"], s["name"], bool(s["isthing"]), s["score"], s["area"], tuple(s["bbox"]))
            for s in self._annotation[0]
        )

    def plot(self, opacity: float = 0.6) -> Image.Image:
        """The image with coloured, outlined and named segments."""
        return paint(self.image, self.prediction.panoptic, self.vocabulary.names, opacity)

    def save(self, folder: Path | str, name: str) -> None:
        """Write ``NAME_segments.png`` (to look at), ``NAME_ids.png`` (COCO's panoptic PNG) and ``NAME.json``.

        The JSON file has names, scores, areas and boxes of the segments.

        Args:
            folder: created if missing.
            name: of the files.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        segments, ids = self._annotation
        shown = io.BytesIO()
        # stronger compression takes six times as long and saves little
        self.plot().save(shown, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        write_bytes(folder / f"{name}_segments.png", shown.getvalue())
        write_bytes(folder / f"{name}_ids.png", encode_ids(ids))
        content = {"file_name": f"{name}_ids.png", "segments": segments}
        write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")

    @cached_property
    def _annotation(self) -> tuple[list[dict[str, Any]], NDArray[np.int32]]:
        """COCO's records of the segments, with names, and the map."""
        annotation, ids = panoptic_annotation(self.prediction.panoptic, self.vocabulary, 0, "")
        names = {category.id: category.name for category in self.vocabulary.categories}
        return [{"name": names[s["category_id"]], **s} for s in annotation["segments_info"]], ids
