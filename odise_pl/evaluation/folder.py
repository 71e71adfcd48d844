"""Predictions of any model, read from a folder in COCO's result formats."""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odise_pl.data.images import decode_ids, decode_semantic
from odise_pl.data.instances import run_length
from odise_pl.data.records import DataError
from odise_pl.evaluation.categories import match_listed
from odise_pl.evaluation.coco_results import INSTANCES, PANOPTIC, SEMANTIC, PredictionError
from odise_pl.files import is_plain_name
from odise_pl.metrics.suite import EvaluationResult
from odise_pl.structures import Batch, Instances, PanopticSegmentation, Prediction, Segment, Size
from odise_pl.vocabulary import Vocabulary, VocabularyError

_log = logging.getLogger(__name__)
_KINDS = {int: "whole number", float: "number", str: "text", list: "list", object: "value"}


class FolderPredictor(nn.Module):
    """Predictions that lie in a folder.

    Args:
        folder: holds some of ``panoptic.json`` with ``panoptic/*.png``, ``instances.json`` and
            ``semantic/KEY.png`` (grey, class indices), as
            :class:`~odise_pl.evaluation.writer.PredictionWriter` writes them.
        vocabulary: classes of the data set; the files carry its ids, unless ``panoptic.json`` has
            ``categories`` of its own, which are matched by name.
        own: the same classes under the data set's own names, where ``vocabulary`` has others.

    Raises:
        PredictionError: a JSON file is damaged.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, own: Vocabulary | None = None) -> None:
        super().__init__()
        self.folder, self.vocabulary = folder, vocabulary
        panoptic = self._read(f"{PANOPTIC}.json")
        self._panoptic = None if panoptic is None else self._by_image(self._annotations(panoptic))
        self._listed = None if panoptic is None else self._match(panoptic, (own or vocabulary, vocabulary))
        self._instances: dict[int, list[tuple[int, Any]]] | None = None  # with their places in the file
        results = self._read(f"{INSTANCES}.json")
        if results is not None:
            if not isinstance(results, list):
                raise self._fault(f"{INSTANCES}.json", "is no list of results")
            self._instances = defaultdict(list)
            for number, result in enumerate(results):
                self._instances[self._id(result, INSTANCES)].append((number, result))
            self._tell_repeated(results)

    def _annotations(self, content: Any) -> Sequence[Any]:
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise self._fault(f"{PANOPTIC}.json", "is no panoptic JSON: it has no list of annotations")
        annotations: Sequence[Any] = content["annotations"]
        return annotations

    def _match(self, content: Mapping[str, Any], sets: Sequence[Vocabulary]) -> dict[int, int | str] | None:
        if content.get("categories") is None:
            return None
        try:
            return match_listed(content["categories"], sets)
        except DataError as error:
            raise self._fault(f"{PANOPTIC}.json", str(error)) from error

    def _by_image(self, annotations: Sequence[Any]) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for annotation in annotations:
            image_id = self._id(annotation, PANOPTIC)
            if image_id in found:
                raise self._fault(f"{PANOPTIC}.json", f"image_id {image_id} has two annotations")
            found[image_id] = annotation
        return found

    def _tell_repeated(self, results: Sequence[Any]) -> None:
        """COCO's format allows a result to come again, and its rules count it as wrong."""
        seen: set[str] = set()
        repeated = []
        for number, result in enumerate(results):
            fact = repr([result.get(name) for name in ("image_id", "category_id", "score", "segmentation")])
            if fact in seen:
                repeated.append(number)
            seen.add(fact)
        if repeated:
            _log.warning(
                "%s/%s.json: %d of %d results are the same as one before (same image, category, mask and "
                "score), entry %d the first; by COCO's rules they count as false: were two lists joined?",
                *(self.folder, INSTANCES, len(repeated), len(results), repeated[0]),
            )

    def facts(self) -> tuple[str, ...]:
        """What tells these predictions from others."""
        paths = [self.folder / f"{name}.json" for name in (PANOPTIC, INSTANCES)] + [self.folder / SEMANTIC]
        return tuple(f"{path.resolve()} {path.stat().st_mtime_ns}" for path in paths if path.exists())

    @property
    def measures(self) -> tuple[str, ...]:
        """What the folder has predictions for, of :data:`~odise_pl.measures.MEASURES`."""
        there = {
            "panoptic": self._panoptic is not None,
            "instances": self._instances is not None,
            "semantic": (self.folder / SEMANTIC).exists(),
        }
        return tuple(name for name, found in there.items() if found)

    def forward(self, batch: Batch) -> list[Prediction]:
        """Read the predictions of a batch.

        Raises:
            PredictionError: one is missing, damaged, or has a category that the vocabulary lacks.
        """
        facts = zip(batch.keys, batch.image_ids, batch.original_sizes, strict=True)
        device = batch.images.device
        return [self._prediction(key, image_id, size).to(device) for key, image_id, size in facts]

    def refuse_strangers(self, result: EvaluationResult) -> None:
        """Predictions of images that the data set does not have are of another set.

        As many as the set has samples that cannot be read may be theirs.

        Args:
            result: of the whole set.

        Raises:
            PredictionError: there are more.
        """
        for name, found in ((PANOPTIC, self._panoptic), (INSTANCES, self._instances)):
            if found is None:
                continue
            if result.instances is not None:
                strangers = sorted(set(found) - set(result.instances.image_ids))
                count, which = len(strangers), f", image_id {strangers[0]} the first" if strangers else ""
            else:  # every image that was scored has an annotation
                count, which = len(found) - result.num_images, ""
            if count > result.left_out:
                raise self._fault(f"{name}.json", f"{count} images are none of the data set's{which}")

    def _prediction(self, key: str, image_id: int, size: Size) -> Prediction:
        return Prediction(
            self._read_panoptic(image_id, size),
            self._read_instances(image_id, size),
            self._read_semantic(key, size),
        )

    def _read_panoptic(self, image_id: int, size: Size) -> PanopticSegmentation:
        if self._panoptic is None:
            return PanopticSegmentation(torch.zeros(size, dtype=torch.int32), ())
        if image_id not in self._panoptic:
            raise self._fault(f"{PANOPTIC}.json", f"no annotation with image_id {image_id}")
        annotation = self._panoptic[image_id]
        where = f"{PANOPTIC}.json: image_id {image_id}"
        name = self._field(annotation, "file_name", where, str)
        if not is_plain_name(name):
            raise self._fault(where, f"file_name {name!a} is not the name of a file in {PANOPTIC}")
        infos = self._field(annotation, "segments_info", where, list)
        segments = tuple(self._segment(info, where) for info in infos)
        return PanopticSegmentation(self._map(f"{PANOPTIC}/{name}", decode_ids, size), segments)

    def _segment(self, info: Any, where: str) -> Segment:
        category = self._listed_category(self._field(info, "category_id", where, int), where)
        segment_id = self._field(info, "id", where, int)
        if not 0 <= segment_id < 1 << 24:
            raise self._fault(where, f"id {segment_id} is none that a PNG of three bytes can hold")
        return Segment(segment_id, category, self.vocabulary.isthing[category])

    def _read_instances(self, image_id: int, size: Size) -> Instances:
        results = [] if self._instances is None else self._instances.get(image_id, [])
        labels, scores, masks = [], [], []
        for number, result in results:
            where = f"{INSTANCES}.json: entry {number} (image_id {image_id})"
            labels.append(self._unlisted_category(self._field(result, "category_id", where, int), where))
            scores.append(float(self._field(result, "score", where, float)))
            masks.append(self._mask(self._field(result, "segmentation", where), size, where))
        return Instances(
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(scores, dtype=torch.float64),
            torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        )

    def _mask(self, segmentation: Any, size: Size, where: str) -> Tensor:
        from pycocotools import mask as mask_api

        try:
            return torch.from_numpy(mask_api.decode(run_length(segmentation, size)).astype(bool))
        except (DataError, ValueError) as error:
            raise self._fault(where, str(error)) from error

    def _read_semantic(self, key: str, size: Size) -> Tensor:
        if "semantic" not in self.measures:
            return torch.full(size, -1)
        return self._map(f"{SEMANTIC}/{key}.png", decode_semantic, size).long()

    def _map(self, name: str, decode: Callable[[bytes], np.ndarray], size: Size) -> Tensor:
        try:
            values = decode((self.folder / name).read_bytes())
        except FileNotFoundError as error:
            raise self._fault(name, "is missing") from error
        except (DataError, OSError, ValueError) as error:
            raise self._fault(name[:100], str(error)) from error
        if values.shape != size:
            shape = f"{values.shape[1]}x{values.shape[0]}"
            raise self._fault(name, f"has {shape} pixels, the image has {size[1]}x{size[0]}")
        return torch.from_numpy(values)

    def _listed_category(self, category_id: int, where: str) -> int:
        if self._listed is None:
            return self._category(category_id, where)
        found = self._listed.get(category_id, "which the file's categories lack")
        if isinstance(found, str):
            raise self._fault(
                where,
                f"category_id {category_id} is {found}; give the data set's names, or take categories out of "
                "the file if its ids are the data set's",
            )
        return found

    def _unlisted_category(self, category_id: int, where: str) -> int:
        """Of a file without a list: an id that the list beside it reads otherwise may be meant either way."""
        index = self._category(category_id, where)
        if self._listed is not None and self._listed.get(category_id, index) != index:
            raise self._fault(
                where,
                f"category_id {category_id} is '{self.vocabulary.names[index]}' in the data set and another "
                f"class in the categories of {PANOPTIC}.json: give both files the data set's ids",
            )
        return index

    def _category(self, category_id: Any, where: str) -> int:
        try:
            return self.vocabulary.index_of(category_id)
        except (VocabularyError, TypeError) as error:
            raise self._fault(where, f"category_id {category_id!r} is none of the data set's") from error

    def _read(self, name: str) -> Any:
        """The content of a JSON file; None if there is none."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return json.loads(path.read_bytes())  # of bytes, since it knows byte order marks
        except (OSError, ValueError, RecursionError) as error:
            raise self._fault(name, f"cannot be read ({error})") from error

    def _id(self, item: Any, name: str) -> int:
        return self._field(item, "image_id", f"{name}.json", int)

    def _field(self, item: Any, field: str, where: str, kind: type = object) -> Any:
        if not isinstance(item, dict) or field not in item:
            raise self._fault(where, f"an entry has no {field}")
        value = item[field]
        fits = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        if kind is float and isinstance(value, int) and abs(value) > sys.float_info.max:
            fits = False
        if not fits:
            raise self._fault(where, f"{field} {value!r} is no {_KINDS[kind]}")
        return value

    def _fault(self, where: str, cause: str) -> PredictionError:
        return PredictionError(f"{self.folder}/{where}: {cause}")


def find_predictions(
    root: Path,
    name: str,
    sets: Sequence[str],
    vocabulary: Vocabulary,
    measures: Sequence[str],
    own: Vocabulary | None = None,
) -> tuple[FolderPredictor, tuple[str, ...]]:
    """The predictions of an evaluation set, and what can be measured on them.

    Args:
        root: holds a folder ``name``, or the predictions themselves if there is one set only.
        name: of the set.
        sets: names of all sets.
        vocabulary: classes of the set.
        measures: what the truth is complete for.
        own: see :class:`FolderPredictor`.

    Raises:
        PredictionError: there are none of the right kind.
    """
    kinds = (f"{PANOPTIC}.json", f"{INSTANCES}.json", SEMANTIC)
    # the folder of a set called panoptic or semantic is none if it holds only maps
    inside = len(sets) > 1 or any((root / name / kind).exists() for kind in kinds)
    folder = root / name if inside else root
    predictor = FolderPredictor(folder, vocabulary, own)
    possible = tuple(measure for measure in measures if measure in predictor.measures)
    if not possible:
        files = {
            "panoptic": f"{PANOPTIC}.json with {PANOPTIC}/*.png",
            "instances": f"{INSTANCES}.json",
            "semantic": f"{SEMANTIC}/KEY.png",
        }
        wanted = " or ".join(files[measure] for measure in measures)
        raise PredictionError(f"{folder} has no predictions for {name}: expected {wanted}")
    missing = [measure for measure in measures if measure not in possible]
    if missing:
        _log.info("%s: %s not measured, %s has no predictions for it", name, " and ".join(missing), folder)
    return predictor, possible
