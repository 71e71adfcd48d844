"""Predictions of the network; :mod:`odise_pl.evaluation.folder` reads those in files."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from odise_pl.distributed.sharding import keep_in_step
from odise_pl.errors import SettingError
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.models.inference import NetworkPrediction
from odise_pl.models.network import SegmentationNetwork
from odise_pl.structures import Batch
from odise_pl.vocabulary import Vocabulary


def measured(model: SegmentationNetwork, possible: Sequence[str], name: str) -> tuple[str, ...]:
    """What is measured on an evaluation set: what its annotations allow and the network predicts.

    Raises:
        SettingError: nothing is.
    """
    measures = tuple(one for one in possible if one in model.measures)
    if not measures:
        raise SettingError(
            f"data.val: {name} has labels for {', '.join(possible)} only, and this network gives "
            f"{', '.join(model.measures)} results: choose another set"
        )
    return measures


class NetworkPredictor(nn.Module):
    """Predictions of the network on a vocabulary.

    Args:
        model: the network.
        vocabulary: classes to predict.
        training: classes that the network was trained on.
    """

    def __init__(self, model: SegmentationNetwork, vocabulary: Vocabulary, training: Vocabulary) -> None:
        super().__init__()
        self.model, self.vocabulary, self.training_vocabulary = model, vocabulary, training
        self._classes: InferenceClasses | None = None
        if model.words is not None:
            model.words(vocabulary.labels)  # a class without a vector is an error before the first step

    def forget(self) -> None:
        """Embed the vocabulary again: the network has learned."""
        self._classes = None

    def forward(self, batch: Batch) -> Sequence[NetworkPrediction]:
        """Predict; the first batch, which may be empty, embeds the vocabulary on its device."""
        if self._classes is None:
            self._classes = self.model.prepare(self.vocabulary, self.training_vocabulary)
        if not len(batch):
            keep_in_step(self.model, self._classes)
            return []
        sizes = (batch.valid_sizes, batch.original_sizes)
        return self.model.predict(batch.images, *sizes, self._classes, batch.generated_captions)
