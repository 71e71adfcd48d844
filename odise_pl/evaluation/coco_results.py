"""COCO's result formats: panoptic JSON and PNGs, and instance results.

https://cocodataset.org/#format-results. panopticapi and pycocotools read these files. COCO has no format for
semantic maps: they are grey PNGs of class indices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from odise_pl.data.segments import describe_segments
from odise_pl.errors import UserError
from odise_pl.structures import Instances, PanopticSegmentation
from odise_pl.vocabulary import Vocabulary

PANOPTIC, INSTANCES, SEMANTIC = "panoptic", "instances", "semantic"  # PANOPTIC.json, PANOPTIC/, ...


class PredictionError(UserError, ValueError):
    """Predictions in a folder are missing or damaged, or do not match the data set."""


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
