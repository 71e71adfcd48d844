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
from odise_pl.evaluation.writer import INSTANCES, PANOPTIC, SEMANTIC, PredictionError
from odise_pl.files import is_plain_name
from odise_pl.metrics.suite import EvaluationResult
from odise_pl.structures import Batch, Instances, PanopticSegmentation, Prediction, Segment, Size
from odise_pl.vocabulary import Vocabulary, VocabularyError, normalise_name

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
        vocabulary: the data set's own classes, whose category ids the files use.

    Raises:
        PredictionError: a JSON file is damaged, or lists categories with other ids or names.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.folder, self.vocabulary = folder, vocabulary
        # entries of each file by image
        self._panoptic: dict[int, list[Any]] | None = None
        self._instances: dict[int, list[Any]] | None = None
        with self._reading(_PANOPTIC_JSON):
            if (content := self._json(_PANOPTIC_JSON)) is not None:
                self._panoptic = _by_image(fields.sequence(content, "annotations"))
                if content.get("categories") is not None:
                    _check_categories(fields.sequence(content, "categories"), vocabulary)
        with self._reading(_INSTANCES_JSON):
            if (content := self._json(_INSTANCES_JSON)) is not None:
                self._instances = _by_image(fields.sequence({"results": content}, "results"))

    def _json(self, name: str) -> Any:
        """The content of a file; None if it does not exist."""
        path = self.folder / name
        return fields.parse_json(path.read_bytes()) if path.exists() else None

    def fingerprint(self) -> str:
        """A digest of name, size and time of the files."""
        names = (_PANOPTIC_JSON, _INSTANCES_JSON, f"{PANOPTIC}/*.png", f"{SEMANTIC}/*.png")
        paths = sorted(path for name in names for path in self.folder.glob(name))
        stats = [(path.relative_to(self.folder).as_posix(), path.stat()) for path in paths]
        text = "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in stats)
        return hashlib.sha256(text.encode()).hexdigest()

    def measures(self, possible: Sequence[str]) -> tuple[str, ...]:
        """Those of the measures that the folder has predictions for.

        Raises:
            PredictionError: there are none.
        """
        found = {
            "panoptic": self._panoptic is not None,
            "instances": self._instances is not None,
            "semantic": self._has_semantic,
        }
        missing = [name for name in possible if not found[name]]
        if len(missing) == len(possible):
            expected = " or ".join(_EXPECTED[name] for name in possible)
            raise PredictionError(f"{self.folder} has no predictions: expected {expected}")
        if missing:
            _log.info("%s has no predictions for %s: skipped", self.folder, " and ".join(missing))
        return tuple(name for name in possible if found[name])

    @property
    def _has_semantic(self) -> bool:
        return (self.folder / SEMANTIC).exists()

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
                first = unknown[0]
                raise self._error(
                    name, f"{len(unknown)} images are not in the data set, first image_id {first}"
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
            )
            for key, image_id, size in images
        ]

    def _read_panoptic(self, image_id: int, size: Size) -> PanopticSegmentation:
        if self._panoptic is None:
            return PanopticSegmentation(torch.zeros(size, dtype=torch.int32), ())
        with self._reading(f"{_PANOPTIC_JSON}: image_id {image_id}"):
            entries = self._panoptic.get(image_id, [])
            if len(entries) != 1:
                raise DataError(f"has {len(entries)} annotations, expected one")
            (annotation,) = entries
            name = fields.string(annotation, "file_name")
            if not is_plain_name(name):
                raise DataError(f"has file_name {name!a}, which is not the name of a file in {PANOPTIC}")
            segments = tuple(self._segment(info) for info in fields.sequence(annotation, "segments_info"))
        return PanopticSegmentation(self._map(f"{PANOPTIC}/{name}", decode_ids, size), segments)

    def _segment(self, info: Any) -> Segment:
        category = self.vocabulary.index_of(fields.integer(info, "category_id"))
        return Segment(fields.integer(info, "id"), category, self.vocabulary.isthing[category])

    def _read_instances(self, image_id: int, size: Size) -> Instances:
        results = [] if self._instances is None else self._instances.get(image_id, [])
        labels, scores, masks = [], [], []
        for number, result in enumerate(results):
            with self._reading(f"{_INSTANCES_JSON}: image_id {image_id}, entry {number} of the image"):
                labels.append(self.vocabulary.index_of(fields.integer(result, "category_id")))
                scores.append(_score(result))
                code = encode_rle(fields.segmentation(result, "segmentation"), size)
                masks.append(torch.from_numpy(mask_api.decode(code).astype(bool)))
        return Instances(
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(scores, dtype=torch.float64),
            torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        )

    def _read_semantic(self, key: str, size: Size) -> Tensor:
        if not self._has_semantic:
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


def _by_image(entries: Sequence[Any]) -> dict[int, list[Any]]:
    found = defaultdict(list)
    for entry in entries:
        found[fields.integer(entry, "image_id")].append(entry)
    return dict(found)


def _check_categories(listed: Sequence[Any], vocabulary: Vocabulary) -> None:
    """Refuse category ids with another meaning than in the data set."""
    for item in listed:
        category_id, name = fields.integer(item, "id"), fields.text(item, "name")
        own = vocabulary.categories[vocabulary.index_of(category_id)]
        if normalise_name(name) not in map(normalise_name, (*own.names, own.official)):
            raise DataError(
                f"categories has id {category_id} for {name!r}, the data set for {own.name!r}: use the data "
                "set's ids and names"
            )


def _score(result: Any) -> float:
    score = result.get("score")
    if type(score) not in (int, float) or not abs(score) <= sys.float_info.max:
        raise DataError(f"has score {shortened(score)}, expected a finite number")
    return float(score)
