"""Write predictions in COCO's result formats: panoptic JSON and PNGs, and instance results.

https://cocodataset.org/#format-results. panopticapi and pycocotools read these files. COCO has no format for
semantic maps: they are grey PNGs of class indices.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from odise_pl.data.label_maps import encode_ids, encode_semantic
from odise_pl.data.segments import describe_segments
from odise_pl.errors import UserError
from odise_pl.files import write_bytes, write_text
from odise_pl.structures import Batch, Instances, PanopticSegmentation, Prediction
from odise_pl.vocabulary import MEASURES, Vocabulary

PANOPTIC, INSTANCES, SEMANTIC = "panoptic", "instances", "semantic"  # PANOPTIC.json, PANOPTIC/, ...
_PARTS = ".parts"
_OWNER = f"{_PARTS}/evaluation"
_FILES = (f"{PANOPTIC}.json", f"{INSTANCES}.json")
_NAMES = (_PARTS, PANOPTIC, SEMANTIC, *_FILES)


class PredictionError(UserError, ValueError):
    """Predictions in a folder are missing or damaged, or do not match the data set."""


class PredictionWriter:
    """Writes the predictions of one evaluation set.

    Each batch writes its PNGs and one part of the JSON files. At the end the parts are joined in the order of
    the set, independent of the ranks and runs that wrote them. They are removed when all sets are finished:
    until then, they identify the evaluation.

    Args:
        folder: for ``panoptic.json``, ``panoptic/KEY.png``, ``instances.json`` and ``semantic/KEY.png``.
        vocabulary: classes of the set, whose category ids are written.
        digest: of the evaluation; predictions of another one are neither resumed nor overwritten.
        kinds: what is written, of :data:`~odise_pl.vocabulary.MEASURES`.
    """

    def __init__(
        self, folder: Path, vocabulary: Vocabulary, digest: str, kinds: Sequence[str] = MEASURES
    ) -> None:
        self.folder, self.vocabulary, self.digest, self.kinds = folder, vocabulary, digest, kinds
        self._files = [file for file in _FILES if file.removesuffix(".json") in kinds]

    def check_folder(self) -> None:
        """Raise PredictionError if the folder contains predictions of another evaluation."""
        taken = [name for name in _NAMES if (self.folder / name).exists()]
        owner = self.folder / _OWNER
        if taken and not (owner.is_file() and owner.read_text(encoding="utf-8") == self.digest):
            raise PredictionError(
                f"{self.folder} already contains predictions ({taken[0]}); choose another, or delete it"
            )

    def start(self) -> None:
        """Remove what this evaluation has written; only the first rank may call this.

        Raises:
            PredictionError: the folder contains other predictions.
        """
        self.check_folder()
        for name in (PANOPTIC, SEMANTIC, _PARTS):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in _FILES:
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / _PARTS).mkdir(parents=True)
        write_text(self.folder / _OWNER, self.digest)

    def write(self, batch: Batch, predictions: Sequence[Prediction]) -> None:
        """Write the predictions of a batch, over those of an interrupted run."""
        for name in (PANOPTIC, SEMANTIC, _PARTS):
            if name == _PARTS or name in self.kinds:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        part: dict[str, list[Any]] = {"images": [], "annotations": [], "results": []}
        images = zip(batch.keys, batch.image_suffixes, batch.image_ids, predictions, strict=True)
        for key, suffix, image_id, prediction in images:
            file_name = f"{key}.png"
            semantic = prediction.semantic.cpu().numpy()
            write_bytes(self.folder / SEMANTIC / file_name, encode_semantic(semantic))
            size = {"height": semantic.shape[0], "width": semantic.shape[1]}
            part["images"].append({"id": image_id, "file_name": f"{key}.{suffix}", **size})
            if PANOPTIC in self.kinds:
                panoptic = prediction.panoptic
                annotation, ids = panoptic_annotation(panoptic, self.vocabulary, image_id, file_name)
                write_bytes(self.folder / PANOPTIC / file_name, encode_ids(ids))
                part["annotations"].append(annotation)
            if INSTANCES in self.kinds:
                part["results"] += instance_results(prediction.instances, self.vocabulary, image_id)
        write_text(self.folder / _PARTS / f"{batch.number:09d}.json", json.dumps(part))

    def done(self) -> frozenset[int]:
        """The numbers of the batches whose predictions are written and not yet joined."""
        return frozenset(int(path.stem) for path in (self.folder / _PARTS).glob("*.json"))

    def is_complete(self) -> bool:
        """Whether the parts have been joined."""
        return all((self.folder / name).is_file() for name in self._files)

    def finish(self, images: int) -> None:
        """Join the parts after all ranks have written theirs.

        Args:
            images: number of scored images.

        Raises:
            PredictionError: the predictions of some images are missing.
        """
        paths = sorted((self.folder / _PARTS).glob("*.json"))
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        panoptic: dict[str, Any] = {
            name: [item for part in parts for item in part[name]] for name in ("images", "annotations")
        }
        found = len(panoptic["images"])
        if found != images:
            raise PredictionError(
                f"{self.folder} contains predictions of {found} of {images} images: files were changed "
                "during the evaluation; delete the folder and run the command again"
            )
        panoptic["categories"] = [
            {"id": c.id, "name": c.official or c.name, "isthing": int(c.isthing)}
            for c in self.vocabulary.categories
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        results = [result for part in parts for result in part["results"]]
        contents = dict(zip(_FILES, (panoptic, results), strict=True))
        for name in self._files:
            write_text(self.folder / name, json.dumps(contents[name]))

    def clean(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)


def panoptic_annotation(
    panoptic: PanopticSegmentation, vocabulary: Vocabulary, image_id: int, file_name: str
) -> tuple[dict[str, Any], NDArray[np.int32]]:
    """The annotation of a panoptic map, and its ids, int32 [H, W]."""
    ids = panoptic.ids.cpu().numpy().astype(np.int32, copy=False)
    scores = {segment.id: segment.score for segment in panoptic.segments}
    categories = {segment.id: segment.category for segment in panoptic.segments}
    segments = [
        {
            "id": record.id,
            "category_id": vocabulary.categories[record.category].id,
            "isthing": int(record.isthing),
            "iscrowd": 0,
            "area": record.area,
            "bbox": list(record.bbox),
            "score": scores[record.id],
        }
        for record in describe_segments(ids, categories, vocabulary.isthing)
    ]
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}, ids


def instance_results(instances: Instances, vocabulary: Vocabulary, image_id: int) -> list[dict[str, Any]]:
    """The scored objects of an image, their masks as compressed run-length codes."""
    # one at a time: all masks of a large image take gigabytes
    codes = [mask_api.encode(np.asfortranarray(mask.byte().cpu().numpy())) for mask in instances.masks]
    facts = zip(instances.labels.tolist(), instances.scores.double().tolist(), codes, strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": vocabulary.categories[label].id,
            "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
            "score": score,
        }
        for label, score, code in facts
    ]
