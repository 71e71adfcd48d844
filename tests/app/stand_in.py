"""A fast stand-in for a network: the upper half of every picture is the first word."""

from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.inference import InferenceSettings
from odise_pl.prediction.segmentation import Segmentation
from odise_pl.structures import PanopticSegmentation, Segment
from odise_pl.vocabulary import Vocabulary, load_vocabulary

SCORE = 0.75


class StandIn:
    """Finds the segment unless its score is at most the object threshold; notes the settings it was given."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(inference=InferenceSettings(), classifier=ClassifierSettings())
        self.training = load_vocabulary(["ball"])
        self.seen: list[Any] = []

    def __call__(
        self,
        image: Image.Image,
        vocabulary: Vocabulary,
        *,
        object_threshold: float = 0,
        overlap_threshold: float = 0.8,
        classifier: str = "both",
    ) -> Segmentation:
        self.seen.append((overlap_threshold, classifier))
        found = object_threshold < SCORE
        ids = torch.zeros(image.height, image.width, dtype=torch.int32)
        ids[: image.height // 2] = int(found)
        segments = (Segment(1, 0, vocabulary.isthing[0], score=SCORE),) if found else ()
        prediction: Any = SimpleNamespace(panoptic=PanopticSegmentation(ids, segments), best=(0, SCORE))
        return Segmentation(image, vocabulary, prediction)
