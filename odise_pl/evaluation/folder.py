"""Predictions of any model, read from a folder in COCO's result formats."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_api
from torch import Tensor, nn

from odise_pl.data import fields
from odise_pl.data.instances import encode_rle
from odise_pl.data.label_maps import decode_ids, decode_semantic
from odise_pl.data.records import DataError
from odise_pl.evaluation.categories import match_listed
from odise_pl.evaluation.coco_results import INSTANCES, PANOPTIC, SEMANTIC, PredictionError
from odise_pl.files import is_plain_name
from odise_pl.metrics.suite import EvaluationResult
from odise_pl.structures import Batch, Instances, PanopticSegmentation, Prediction, Segment, Size
from odise_pl.vocabulary import Vocabulary, VocabularyError

_log = logging.getLogger(__name__)
_PANOPTIC_JSON, _INSTANCES_JSON = f"{PANOPTIC}.json", f"{INSTANCES}.json"
_EXPECTED = {
    "panoptic": f"{_PANOPTIC_JSON} with {PANOPTIC}/*.png",
    "instances": _INSTANCES_JSON,
    "semantic": f"{SEMANTIC}/KEY.png",
}


class FolderPredictor(nn.Module):
    """Reads predictions from a folder.

    Args:
        folder: contains some of ``panoptic.json`` with ``panoptic/*.png``, ``instances.json`` and
            ``semantic/KEY.png`` (grey, class indices), as
            :class:`~odise_pl.evaluation.writer.PredictionWriter` writes them.
        vocabulary: classes of the data set. The files use its category ids, unless ``panoptic.json`` lists
            ``categories``, which are matched by name.
        own: the same classes under the data set's own names, if ``vocabulary`` has others.

    Raises:
        PredictionError: a JSON file is damaged.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, own: Vocabulary | None = None) -> None:
        super().__init__()
        self.folder, self.vocabulary = folder, vocabulary
        # classes by category id, if panoptic.json lists categories
        self._listed: dict[int, int | str] | None = None
        self._panoptic: dict[int, Any] | None = None
        # results with their positions in the file, by image
        self._instances: dict[int, list[tuple[int, Any]]] | None = None
        with self._reading(_PANOPTIC_JSON):
            if (content := self._json(_PANOPTIC_JSON)) is not None:
                self._panoptic = _by_image(fields.sequence(content, "annotations"))
                if content.get("categories") is not None:
                    self._listed = match_listed(content["categories"], (own or vocabulary, vocabulary))
        with self._reading(_INSTANCES_JSON):
            if (content := self._json(_INSTANCES_JSON)) is not None:
                self._instances = self._results_by_image(content)

    def _json(self, name: str) -> Any:
        """The content of a file; None if it does not exist."""
        path = self.folder / name
        return fields.parse_json(path.read_bytes()) if path.exists() else None

    def _results_by_image(self, content: Any) -> dict[int, list[tuple[int, Any]]]:
        if not isinstance(content, list):
            raise DataError("is not a list of results")
        found = defaultdict(list)
        for number, result in enumerate(content):
            found[fields.integer(result, "image_id")].append((number, result))
        self._report_duplicates(content)
        return found

    def _report_duplicates(self, results: Sequence[Any]) -> None:
        """Warn of duplicate results, which COCO's format allows and its rules count as false."""
        seen: set[str] = set()
        duplicates = []
        for number, result in enumerate(results):
            fact = repr([result.get(name) for name in ("image_id", "category_id", "score", "segmentation")])
            if fact in seen:
                duplicates.append(number)
            seen.add(fact)
        if duplicates:
            _log.warning(
                "%s/%s: %d of %d results are duplicates (same image, category, mask and score), first entry "
                "%d; by COCO's rules they count as false: remove them if two lists were joined by mistake",
                *(self.folder, _INSTANCES_JSON, len(duplicates), len(results), duplicates[0]),
            )

    def fingerprint(self) -> str:
        """A digest of the content of the JSON files, and of name, size and time of the maps."""
        digest = hashlib.sha256()
        for name in (_PANOPTIC_JSON, _INSTANCES_JSON):
            if (self.folder / name).exists():
                digest.update((self.folder / name).read_bytes())
        for path in sorted(
            path for kind in (PANOPTIC, SEMANTIC) for path in (self.folder / kind).glob("*.png")
        ):
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
        return digest.hexdigest()

    @property
    def measures(self) -> tuple[str, ...]:
        """The :data:`~odise_pl.vocabulary.MEASURES` that the folder has predictions for."""
        found = {
            "panoptic": self._panoptic is not None,
            "instances": self._instances is not None,
            "semantic": (self.folder / SEMANTIC).exists(),
        }
        return tuple(name for name, there in found.items() if there)

    def check_images(self, result: EvaluationResult) -> None:
        """Refuse predictions of another data set.

        Args:
            result: of the whole set. Its skipped samples may have predictions.

        Raises:
            PredictionError: more images than that are not in the data set.
        """
        for name, found in ((_PANOPTIC_JSON, self._panoptic), (_INSTANCES_JSON, self._instances)):
            unknown = sorted(set(found or ()) - result.image_ids)
            if len(unknown) > result.skipped:
                raise self._error(
                    name,
                    f"{len(unknown)} images are not in the data set, first image_id {unknown[0]}",
                )

    def forward(self, batch: Batch) -> list[Prediction]:
        """Read the predictions of a batch.

        Raises:
            PredictionError: one is missing or damaged, or has an unknown category.
        """
        images = zip(batch.keys, batch.image_ids, batch.original_sizes, strict=True)
        return [
            Prediction(
                self._read_panoptic(image_id, size),
                self._read_instances(image_id, size),
                self._read_semantic(key, size),
            ).to(batch.images.device)
            for key, image_id, size in images
        ]

    def _read_panoptic(self, image_id: int, size: Size) -> PanopticSegmentation:
        if self._panoptic is None:
            return PanopticSegmentation(torch.zeros(size, dtype=torch.int32), ())
        if image_id not in self._panoptic:
            raise self._error(_PANOPTIC_JSON, f"no annotation with image_id {image_id}")
        with self._reading(f"{_PANOPTIC_JSON}: image_id {image_id}"):
            annotation = self._panoptic[image_id]
            name = fields.string(annotation, "file_name")
            if not is_plain_name(name):
                raise DataError(f"has file_name {name!a}, which is not the name of a file in {PANOPTIC}")
            segments = tuple(self._segment(info) for info in fields.sequence(annotation, "segments_info"))
        return PanopticSegmentation(self._map(f"{PANOPTIC}/{name}", decode_ids, size), segments)

    def _segment(self, info: Any) -> Segment:
        category = self._category(fields.integer(info, "category_id"))
        return Segment(fields.integer(info, "id"), category, self.vocabulary.isthing[category])

    def _category(self, category_id: int) -> int:
        """The class of a category id in panoptic.json."""
        if self._listed is None:
            return self.vocabulary.index_of(category_id)
        found = self._listed.get(category_id, "not in the file's categories")
        if isinstance(found, str):
            raise DataError(
                f"category_id {category_id} is {found}: use the data set's names, or remove categories from "
                "the file if it uses the data set's ids"
            )
        return found

    def _read_instances(self, image_id: int, size: Size) -> Instances:
        results = [] if self._instances is None else self._instances.get(image_id, [])
        labels, scores, masks = [], [], []
        for number, result in results:
            with self._reading(f"{_INSTANCES_JSON}: entry {number} (image_id {image_id})"):
                labels.append(self._category_of_instance(fields.integer(result, "category_id")))
                scores.append(_score(result))
                code = encode_rle(fields.segmentation(result, "segmentation"), size)
                masks.append(torch.from_numpy(mask_api.decode(code).astype(bool)))
        return Instances(
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(scores, dtype=torch.float64),
            torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        )

    def _category_of_instance(self, category_id: int) -> int:
        """The class of a category id in instances.json, which lists no categories.

        An id with another meaning in panoptic.json is ambiguous.
        """
        index = self.vocabulary.index_of(category_id)
        if self._listed is not None and self._listed.get(category_id, index) != index:
            raise DataError(
                f"category_id {category_id} is {self.vocabulary.names[index]!r} in the data set and another "
                f"class in the categories of {_PANOPTIC_JSON}: use the data set's ids in both files"
            )
        return index

    def _read_semantic(self, key: str, size: Size) -> Tensor:
        if "semantic" not in self.measures:
            return torch.full(size, -1)
        return self._map(f"{SEMANTIC}/{key}.png", decode_semantic, size).long()

    def _map(self, name: str, decode: Callable[[bytes], NDArray[np.int32]], size: Size) -> Tensor:
        with self._reading(name):
            values = decode((self.folder / name).read_bytes())
            if values.shape != size:
                height, width = values.shape
                raise DataError(f"has {width}x{height} pixels, the image has {size[1]}x{size[0]}")
        return torch.from_numpy(values)

    @contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        """Let errors name the folder, file and entry that is read."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._error(where, "is missing") from error
        except (DataError, VocabularyError, OSError, ValueError) as error:
            raise self._error(where, str(error)) from error

    def _error(self, where: str, cause: str) -> PredictionError:
        return PredictionError(f"{self.folder}/{where}: {cause}")


def _by_image(annotations: Sequence[Any]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for annotation in annotations:
        image_id = fields.integer(annotation, "image_id")
        if image_id in found:
            raise DataError(f"image_id {image_id} has two annotations")
        found[image_id] = annotation
    return found


def _score(result: Any) -> float:
    score = result.get("score")
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not abs(score) <= sys.float_info.max:
        raise DataError(f"has score {shortened(score)}, expected a finite number")
    return float(score)


def find_predictions(
    root: Path,
    name: str,
    sets: Sequence[str],
    vocabulary: Vocabulary,
    measures: Sequence[str],
    own: Vocabulary | None = None,
) -> tuple[FolderPredictor, tuple[str, ...]]:
    """The predictions of an evaluation set, and the measures that can be computed from them.

    Args:
        root: contains a folder ``name``, or for a single set the predictions themselves.
        name: of the set.
        sets: names of all sets.
        vocabulary, own: see :class:`FolderPredictor`.
        measures: those that the ground truth allows.

    Raises:
        PredictionError: there are none for any measure.
    """
    # a folder that contains only maps is not that of a set called panoptic or semantic
    entries = (_PANOPTIC_JSON, _INSTANCES_JSON, SEMANTIC)
    nested = len(sets) > 1 or any((root / name / entry).exists() for entry in entries)
    folder = root / name if nested else root
    predictor = FolderPredictor(folder, vocabulary, own)
    possible = tuple(measure for measure in measures if measure in predictor.measures)
    if not possible:
        expected = " or ".join(_EXPECTED[measure] for measure in measures)
        raise PredictionError(f"{folder} has no predictions for {name}: expected {expected}")
    missing = [measure for measure in measures if measure not in possible]
    if missing:
        _log.info("%s: %s skipped, because %s has no predictions", name, " and ".join(missing), folder)
    return predictor, possible
