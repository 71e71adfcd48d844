"""Predictions as files for the official tools; an interrupted evaluation loses none and doubles none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from odise_pl.data.images import encode_ids, is_whole_png
from odise_pl.evaluation.coco_results import (
    INSTANCES,
    PANOPTIC,
    SEMANTIC,
    PredictionError,
    instance_results,
    panoptic_annotation,
    semantic_png,
)
from odise_pl.files import write_text
from odise_pl.structures import Batch, Prediction
from odise_pl.vocabulary import Vocabulary

_PARTS = ".parts"
_OWNER = f"{_PARTS}/evaluation"
_MAPS = (PANOPTIC, SEMANTIC)  # folders of PNGs
_NAMES = (_PARTS, *_MAPS, f"{PANOPTIC}.json", f"{INSTANCES}.json")


class PredictionWriter:
    """Writes the predictions of one evaluation set.

    PNGs are written at once, and what goes into the JSON files as one part for each batch. The parts are put
    together at the end, in the order of the set, whichever ranks made them and in however many runs.

    Args:
        folder: ``panoptic.json``, ``panoptic/KEY.png``, ``instances.json`` and ``semantic/KEY.png`` go here.
        vocabulary: classes of the set; files carry its ids.
        digest: of the evaluation; predictions of another one are neither continued nor written over.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, digest: str) -> None:
        self.folder, self.vocabulary, self.digest = folder, vocabulary, digest

    def start(self, rank: int) -> None:
        """Begin from nothing: what this evaluation has left is removed, all of it by the first rank.

        Raises:
            PredictionError: the folder holds other predictions.
        """
        if rank:
            return
        self.refuse_taken()
        for name in _NAMES:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if (self.folder / name).is_file():
                (self.folder / name).unlink()
        self._claim()

    def _claim(self) -> None:
        (self.folder / _PARTS).mkdir(parents=True, exist_ok=True)
        write_text(self.folder / _OWNER, self.digest)

    def refuse_taken(self) -> None:
        """Raises PredictionError if the folder holds predictions that are not this evaluation's."""
        there = [name for name in _NAMES if (self.folder / name).exists()]
        if there and not self._own():
            raise PredictionError(
                f"{self.folder} holds predictions already ({there[0]}): name another folder, or delete it"
            )

    def _own(self) -> bool:
        try:
            return (self.folder / _OWNER).read_text(encoding="utf-8") == self.digest
        except (OSError, ValueError):
            return False

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

    def lost(self, batches: Iterable[int]) -> Path | None:
        """The first file of what this evaluation has written of these batches that is gone or damaged."""
        batches = list(batches)
        if batches and not self._own():
            return self.folder / _PARTS
        found = (self._lost(self._part(number)) for number in batches)
        return next((path for path in found if path is not None), None)

    def lost_of_all(self) -> Path | None:
        """The same of the predictions of the whole set, once they are put together."""
        instances = self.folder / f"{INSTANCES}.json"
        return self._lost(self._whole, self.digest) or (None if instances.is_file() else instances)

    def reopen(self) -> Path | None:
        """The same; if there is one, the others may be written over, unless nothing says whose they are."""
        lost = self.lost_of_all()
        if lost not in (None, self._whole):
            self._claim()
        return lost

    def _lost(self, path: Path, digest: str | None = None) -> Path | None:
        """A JSON file with annotations, unless it can be read and is of the digest, or one of its maps."""
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            names = [annotation["file_name"] for annotation in content["annotations"]]
        except (OSError, ValueError, KeyError, TypeError):
            return path
        if content.get("info", {}).get("evaluation") != digest:
            return path
        maps = (self.folder / kind / name for kind in _MAPS for name in names)
        return next((file for file in maps if not is_whole_png(file)), None)

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
                f"{self.folder} holds predictions of {found} of {images} images: something else has changed "
                "files while the evaluation ran; delete the folder and repeat"
            )
        categories = [
            {"id": c.id, "name": c.official or c.name, "isthing": int(c.isthing)}
            for c in self.vocabulary.categories
        ]
        panoptic = {
            "info": {"evaluation": self.digest},
            "images": [image for part in parts for image in part["images"]],
            "annotations": [annotation for part in parts for annotation in part["annotations"]],
            "categories": categories,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._whole, json.dumps(panoptic))
        results = [result for part in parts for result in part["results"]]
        write_text(self.folder / f"{INSTANCES}.json", json.dumps(results))

    def clean(self) -> None:
        """Remove the parts; not before the result of the set is on disk, which nothing else could give."""
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)

    @property
    def _whole(self) -> Path:
        return self.folder / f"{PANOPTIC}.json"

    def _part(self, number: int) -> Path:
        return self.folder / _PARTS / f"{number:09d}.json"

    def _parts(self) -> Iterator[dict[str, list[Any]]]:
        for path in sorted((self.folder / _PARTS).glob("*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))
