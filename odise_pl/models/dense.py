"""Networks that name every pixel by itself, without masks: LSeg, SPNet, ZS3Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from odise_pl.errors import SettingError
from odise_pl.models.backbones.captioners import Captions
from odise_pl.models.classifiers.generator import FeatureGenerator, classify_features, fit_classifier
from odise_pl.models.classifiers.text import InferenceClasses, TextClasses, mean_of_names
from odise_pl.models.classifiers.word_vectors import WordVectors
from odise_pl.models.heads.mask_decoder import DecoderOutput
from odise_pl.models.inference import NetworkPrediction, predict_pixels
from odise_pl.models.odise import Odise
from odise_pl.structures import MaskPredictions, Size
from odise_pl.vocabulary import Vocabulary


class DenseNetwork(Odise):
    """A network whose head has an embedding for each cell of a map, and one name for each pixel.

    Args:
        parts: of :class:`Odise`.
        words: embed names in place of CLIP.
        generator: makes features of names, to which the classifier of a vocabulary is fitted; all else then
            stays as it is in training (ZS3Net).
        options: of :class:`Odise`.

    Attributes:
        measures: what evaluations measure: things of a class are not told apart.

    Raises:
        SettingError: the classifier is not the head alone.
    """

    measures = ("semantic",)

    def __init__(
        self,
        *parts: Any,
        words: WordVectors | None = None,
        generator: FeatureGenerator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*parts, **options)
        self.words, self.generator = words, generator

    def _check_mode(self) -> None:
        if self.classifier.mode != "diffusion":
            raise SettingError(
                f"classifier.mode={self.classifier.mode}: only the head names pixels; choose "
                "classifier=diffusion"
            )

    def train(self, mode: bool = True) -> Self:
        """What a generator imitates has no dropout in training either."""
        super().train(mode)
        if self.generator is not None:
            self.pixel_decoder.eval()
        return self

    @property
    def learns_names(self) -> bool:
        return super().learns_names or self.generator is not None

    def encode_names(self, vocabulary: Vocabulary) -> TextClasses:
        """Embed the names of a vocabulary as the trained head reads them."""
        if self.words is None:
            return super().encode_names(vocabulary)
        vectors, counts = self.words(vocabulary.labels)
        classes = TextClasses(vectors.to(self.device), counts)
        return mean_of_names(classes) if self.classifier.mean_of_names else classes

    @torch.no_grad()
    def prepare(self, vocabulary: Vocabulary, training: Vocabulary | None) -> InferenceClasses:
        classes = super().prepare(vocabulary, training)
        if self.generator is None:
            return classes
        fitted = fit_classifier(self.generator, classes.mask_text)
        return replace(classes, mask_text=TextClasses(fitted, (1,) * len(vocabulary)))

    def forward(
        self,
        images: Tensor,
        classes: TextClasses,
        captions: Captions = None,
        valid_sizes: Sequence[Size] | None = None,
    ) -> list[MaskPredictions]:
        """As of :class:`Odise`; with a generator, features of cells, and generated ones of each class."""
        if self.generator is None:
            return super().forward(images, classes, captions, valid_sizes)
        with torch.no_grad():
            (output,) = self.decode(images, captions)
        nothing = output.pooled[:, :, :1]
        made = self.generator.of_classes(classes)
        masks = (output.mask_logits, output.pooled, output.logit_scale)
        return [MaskPredictions(nothing, *masks, generated=made)]

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        valid_sizes: Sequence[Size],
        output_sizes: Sequence[Size],
        classes: InferenceClasses,
        captions: Captions = None,
    ) -> Sequence[NetworkPrediction]:
        self._check_mode()  # a copy may have other settings
        maps = self.classify_cells(self.decode(images, captions)[-1], classes.mask_text)
        canvas = (images.shape[2], images.shape[3])
        return [
            predict_pixels(one, classes.isthing, self.inference, canvas, valid, size, classes.seen)
            for one, valid, size in zip(maps, valid_sizes, output_sizes, strict=True)
        ]

    def classify_cells(self, output: DecoderOutput, text: TextClasses) -> Tensor:
        """Class logits [B, K, h, w] of the cells."""
        if self.generator is None:
            logits = self.mask_class_logits(output, text)
        else:
            logits = classify_features(output.pooled, text.embeddings)
        return logits.float().mT.unflatten(2, output.mask_logits.shape[-2:])
