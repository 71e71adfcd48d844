"""What evaluation, prediction and export ask of a network that segments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from odise_pl.models.backbones.captioners import Captions
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.models.classifiers.word_vectors import WordVectors
from odise_pl.models.inference import InferenceSettings, NetworkPrediction
from odise_pl.structures import Size
from odise_pl.vocabulary import Vocabulary


class SegmentationNetwork(nn.Module):
    """A network that segments images by words.

    Attributes:
        classifier: class scoring at inference.
        inference: thresholds of the results.
        words: embed names for the head in place of its text encoder, if there are any.
        published_quirks: reproduce mistakes of a release.
        learns_labels: whether training has labels; checkpoints that do not name them have COCO's.
    """

    classifier: ClassifierSettings
    inference: InferenceSettings
    words: WordVectors | None  # no default: it would hide a module of this name
    published_quirks: bool = False
    learns_labels: bool = True

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Of images."""

    @property
    @abstractmethod
    def measures(self) -> tuple[str, ...]:
        """What evaluations measure."""

    @property
    @abstractmethod
    def learns_names(self) -> bool:
        """Whether training changes how a vocabulary is prepared."""

    @abstractmethod
    def prepare(self, vocabulary: Vocabulary, training: Vocabulary | None) -> InferenceClasses:
        """Embed a vocabulary for :meth:`predict`; classes that share a name with ``training`` are seen."""

    @abstractmethod
    def predict(
        self,
        images: Tensor,
        valid_sizes: Sequence[Size],
        output_sizes: Sequence[Size],
        classes: InferenceClasses,
        captions: Captions = None,
    ) -> Sequence[NetworkPrediction]:
        """Panoptic, instance and semantic results of every image, computed on first use.

        Args:
            images: [B, 3, H, W] in 0..1, zero-padded, sides multiples of 64.
            valid_sizes: size of each image on the canvas.
            output_sizes: size of each result.
            classes: from :meth:`prepare`.
            captions: one precomputed caption per image, for captioners that use them.
        """
