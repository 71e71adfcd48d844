"""Predictions as files for the official tools; an interrupted evaluation loses none and doubles none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from odise_pl.data.images import encode_ids
from odise_pl.evaluation.coco_results import (
    INSTANCES,
    PANOPTIC,
    SEMANTIC,
    PredictionError,
    instance_results,
    panoptic_annotation,
    semantic_png,
)
from odise_pl.metrics.report import write_text
from odise_pl.structures import Batch, Prediction
from odise_pl.vocabulary import Vocabulary

_PARTS = ".parts"
_MAPS = (PANOPTIC, SEMANTIC)  # folders of PNGs


class PredictionWriter:
    """Writes the predictions of one evaluation set.

    PNGs are written at once, and what goes into the JSON files as one part for each batch. The parts are put
    together at the end, in the order of the set, whichever ranks made them and in however many runs.

    Args:
        folder: ``panoptic.json``, ``panoptic/KEY.png``, ``instances.json`` and ``semantic/KEY.png`` go here.
        vocabulary: classes of the set; files carry its ids.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        self.folder, self.vocabulary = folder, vocabulary

    def start(self, rank: int) -> None:
        """Begin from nothing: parts that an evaluation of something else left are removed by the first rank.

        Raises:
            PredictionError: the folder holds predictions already.
        """
        self.refuse_taken()
        if rank == 0:
            shutil.rmtree(self.folder / _PARTS, ignore_errors=True)

    def refuse_taken(self) -> None:
        """Raises PredictionError if the folder holds predictions already."""
        if (self.folder / f"{PANOPTIC}.json").exists():
            raise PredictionError(
                f"{self.folder} holds predictions already: name another folder, or delete it"
            )

    def write(self, batch: Batch, predictions: Sequence[Prediction]) -> None:
        """Write the predictions of a batch; a batch that comes again is written over."""
        for name in (*_MAPS, _PARTS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        part: dict[str, list[Any]] = {"images": [], "annotations": [], "results": []}
        for key, image_id, prediction in zip(batch.keys, batch.image_ids, predictions, strict=True):
            file_name = f"{key}.png"
            annotation, ids = panoptic_annotation(prediction.panoptic, self.vocabulary, image_id, file_name)
            (self.folder / PANOPTIC / file_name).write_bytes(encode_ids(ids))
            (self.folder / SEMANTIC / file_name).write_bytes(semantic_png(prediction.semantic))
            size = {"height": ids.shape[0], "width": ids.shape[1]}
            part["images"].append({"id": image_id, "file_name": f"{key}.jpg", **size})
            part["annotations"].append(annotation)
            part["results"] += instance_results(prediction.instances, self.vocabulary, image_id)
        write_text(self._part(batch.number), json.dumps(part))

    def holds(self, batches: Iterable[int]) -> bool:
        """Whether all that was written of these batches is still there."""
        for number in batches:
            path = self._part(number)
            if not path.is_file():
                return False
            names = [a["file_name"] for a in json.loads(path.read_text(encoding="utf-8"))["annotations"]]
            if not all((self.folder / kind / name).is_file() for kind in _MAPS for name in names):
                return False
        return True

    @property
    def finished(self) -> bool:
        """Whether the predictions of the whole set are there."""
        return all((self.folder / f"{name}.json").is_file() for name in (PANOPTIC, INSTANCES))

    def finish(self, images: int) -> None:
        """Put the parts together when all ranks have written theirs.

        Args:
            images: that were scored.

        Raises:
            PredictionError: the predictions of some are gone.
        """
        parts = list(self._parts())
        found = sum(len(part["images"]) for part in parts)
        if found != images:
            raise PredictionError(
                f"{self.folder} holds predictions of {found} of {images} images: something else has removed "
                "files while the evaluation ran; delete the folder and repeat"
            )
        categories = [
            {"id": c.id, "name": c.official or c.name, "isthing": int(c.isthing)}
            for c in self.vocabulary.categories
        ]
        panoptic = {
            "images": [image for part in parts for image in part["images"]],
            "annotations": [annotation for part in parts for annotation in part["annotations"]],
            "categories": categories,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{PANOPTIC}.json", json.dumps(panoptic))
        results = [result for part in parts for result in part["results"]]
        write_text(self.folder / f"{INSTANCES}.json", json.dumps(results))

    def clean(self) -> None:
        """Remove the parts; not before the result of the set is on disk, which nothing else could give."""
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self.folder / _PARTS / f"{number:09d}.json"

    def _parts(self) -> Iterator[dict[str, list[Any]]]:
        for path in sorted((self.folder / _PARTS).glob("*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))
