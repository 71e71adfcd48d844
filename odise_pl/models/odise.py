"""The network: from images and a vocabulary to mask predictions and panoptic results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones.captioners import Captions
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.backbones.feature_backbone import FeatureBackbone
from odise_pl.models.backbones.text_cache import TextCache
from odise_pl.models.classifiers.fusion import (
    RULES,
    ClassifierSettings,
    Scores,
    adjust_no_object,
    with_no_object,
)
from odise_pl.models.classifiers.refinement import MaskRefinement
from odise_pl.models.classifiers.regions import REGIONS, Regions
from odise_pl.models.classifiers.text import (
    InferenceClasses,
    TextClasses,
    TextProjection,
    cosine_logits,
    embed_classes,
    max_over_synonyms,
)
from odise_pl.models.heads.mask_decoder import DecoderOutput
from odise_pl.models.heads.settings import AnyMaskDecoder, AnyPixelDecoder
from odise_pl.models.inference import InferenceSettings, NetworkPrediction, predict
from odise_pl.models.network import SegmentationNetwork
from odise_pl.structures import CANVAS_MULTIPLE, MaskPredictions, Size
from odise_pl.vocabulary import MEASURES, Vocabulary


class Odise(SegmentationNetwork):
    """Open-vocabulary panoptic segmentation on features of a frozen network.

    Args:
        backbone: images to a feature pyramid.
        pixel_decoder: pyramid to pixel features.
        mask_decoder: pixel features to masks and their embeddings.
        text_projection: compares mask embeddings with texts.
        clip: the shared frozen CLIP.
        classifier: class scoring at inference.
        inference: thresholds of the results.
        published_quirks: reproduce ODISE's release, whose masked CLIP combines unpadded images with padded
            masks; by default both are unpadded.
        class_agnostic: masks learn no classes, and none is "no object". If the mask decoder has no embedding,
            only CLIP names them.
        refinement: of class-agnostic masks, which then stay as they are in training (MaskCLIP).

    Attributes:
        words: None; see :class:`~odise_pl.models.dense.DenseNetwork`.
        mapped: whether frozen weights are still in mapped files, see ``build_odise``.

    Raises:
        SettingError: masks are class-agnostic, but the classifier is not CLIP alone.
    """

    def __init__(
        self,
        backbone: FeatureBackbone,
        pixel_decoder: AnyPixelDecoder,
        mask_decoder: AnyMaskDecoder,
        text_projection: TextProjection,
        clip: FrozenCLIP,
        classifier: ClassifierSettings,
        inference: InferenceSettings,
        published_quirks: bool = False,
        class_agnostic: bool = False,
        refinement: MaskRefinement | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.pixel_decoder, self.mask_decoder = backbone, pixel_decoder, mask_decoder
        self.text_projection, self.clip = text_projection, clip
        self.classifier, self.inference = classifier, inference
        self.published_quirks = published_quirks
        self.class_agnostic, self.refinement = class_agnostic, refinement
        self.nameless = mask_decoder.embedding is None
        self.words = None
        self.mapped = False
        self._check_mode()
        self._texts = TextCache(self._encode_words)

    def _check_mode(self) -> None:
        if self.nameless and self.classifier.mode != "discriminative":
            raise SettingError(
                f"classifier.mode={self.classifier.mode}: only CLIP names masks of model.supervision=mask; "
                "choose classifier=discriminative"
            )
        if self.class_agnostic and self.classifier.objectness_share:
            supervision = "mask" if self.nameless else "words"
            raise SettingError(
                "fusion.objectness_share lowers the class 'no object', which "
                f"model.supervision={supervision} does not have: set it to 0"
            )

    @property
    def device(self) -> torch.device:
        """Of images."""
        return self.clip.mean.device

    @property
    def measures(self) -> tuple[str, ...]:
        return MEASURES

    @property
    def learns_names(self) -> bool:
        return self.clip.prompt is not None

    @property
    def learns_classes(self) -> bool:
        """Whether class logits of training are of the classes, and not of an object or none."""
        agnostic = self.class_agnostic and self.refinement is None
        return self.mask_decoder.object_head is None and not agnostic

    def decode(self, images: Tensor, captions: Captions = None) -> list[DecoderOutput]:
        """All decoder outputs; with a refinement, its outputs instead.

        Args:
            images: [B, 3, H, W] in 0..1, sides multiples of 64.
            captions: one precomputed caption per image, for captioners that use them.
        """
        if self.refinement is None:
            return self._decode(images, captions)
        with torch.no_grad():
            proposals = self._decode(images, captions)[-1]
        outputs: list[DecoderOutput] = self.refinement(self.clip, images, proposals)
        return outputs

    def _decode(self, images: Tensor, captions: Captions) -> list[DecoderOutput]:
        pyramid = self.backbone(images, captions)
        outputs = self.mask_decoder(self.pixel_decoder(pyramid))
        if self.backbone.gives_clip_map:
            outputs[-1] = replace(outputs[-1], clip_map=pyramid[-1])
        return outputs

    def forward(
        self,
        images: Tensor,
        classes: TextClasses,
        captions: Captions = None,
        valid_sizes: Sequence[Size] | None = None,
    ) -> list[MaskPredictions]:
        """Training predictions of every decoder output.

        Args:
            images, captions: see :meth:`decode`.
            classes: the training classes; the caption model ignores them.
            valid_sizes: of the images without padding; default: without any.
        """
        outputs = self.decode(images, captions)
        # a learned prompt learns from CLIP's scores only
        names = replace(classes, embeddings=classes.embeddings.detach())
        predictions = [self._training_prediction(output, names) for output in outputs]
        if self.clip.learns:
            sizes = valid_sizes or [(images.shape[2], images.shape[3])] * len(images)
            clip_logits = self._clip_class_logits(outputs[-1], images, sizes, classes)
            predictions[-1] = replace(predictions[-1], clip_logits=clip_logits)
        return predictions

    def _training_prediction(self, output: DecoderOutput, classes: TextClasses) -> MaskPredictions:
        logits = output.object_logits
        if self.class_agnostic and self.refinement is None:
            logits = output.mask_embed.new_zeros(*output.mask_embed.shape[:2], 2)
        elif logits is None:
            logits = self.mask_class_logits(output, classes)
        return MaskPredictions(logits, output.mask_logits, output.mask_embed, output.logit_scale)

    def mask_class_logits(self, output: DecoderOutput, classes: TextClasses) -> Tensor:
        """Class logits of the trained head."""
        return self.text_projection(output.mask_embed, classes.embeddings, classes.counts, output.logit_scale)

    def encode_classes(
        self, labels: Sequence[Sequence[str]], prompt: str | Sequence[str] = "{}", mean: bool = False
    ) -> TextClasses:
        """See :func:`~odise_pl.models.classifiers.text.embed_classes`."""
        return embed_classes(self.clip, labels, prompt, mean)

    def encode_names(self, vocabulary: Vocabulary) -> TextClasses:
        """Embed the names of a vocabulary as the trained head reads them."""
        settings = self.classifier
        return self.encode_classes(vocabulary.labels, settings.mask_prompt, settings.mean_of_names)

    def _encode_words(self, words: Sequence[str]) -> Tensor:
        return self.encode_classes([[word] for word in words], self.classifier.mask_prompt).embeddings

    def embed_words(self, words: Sequence[Sequence[str]], places: int | None = None) -> tuple[Tensor, Tensor]:
        """Embed each image's caption words in the space of the mask embeddings.

        Args:
            words: of each image, possibly none.
            places: words per image in the result, at least 1; default: the length of the longest list.

        Returns:
            embeddings [B, places, D], zero for padding, and bool [B, places], False for padding. Gradients
            flow to the projection.
        """
        places = max([places or 1, *map(len, words)])
        flat = [word for of_image in words for word in of_image]
        count = torch.tensor([len(of_image) for of_image in words], device=self.device)
        valid = torch.arange(places, device=count.device) < count[:, None]
        text = self.clip.mean.new_zeros(*valid.shape, self.clip.embed_dim)
        if flat:
            text[valid] = self._texts(flat, text.device).to(text)
        # padding is projected, then masked: the projection needs a gradient on ranks without words
        return self.text_projection.proj(text).float().masked_fill(~valid[..., None], 0), valid

    @torch.no_grad()
    def prepare(self, vocabulary: Vocabulary, training: Vocabulary | None) -> InferenceClasses:
        seen = torch.tensor(vocabulary.overlap(training) if training else (False,) * len(vocabulary))
        settings, mask_text = self.classifier, self.encode_names(vocabulary)
        same = settings.mode == "diffusion" or settings.clip_prompt == settings.mask_prompt
        share = torch.where(seen, settings.seen_share, settings.unseen_share)
        return InferenceClasses(
            mask_text,
            mask_text
            if same
            else self.encode_classes(vocabulary.labels, settings.clip_prompt, settings.mean_of_names),
            share.to(self.device),
            vocabulary.isthing,
            seen.to(self.device),
        )

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        valid_sizes: Sequence[Size],
        output_sizes: Sequence[Size],
        classes: InferenceClasses,
        captions: Captions = None,
    ) -> Sequence[NetworkPrediction]:
        output = self.decode(images, captions)[-1]
        canvas = (images.shape[2], images.shape[3])
        scores = self.classify(output, images, valid_sizes, classes).float()
        return [
            predict(own, masks.float(), classes.isthing, self.inference, canvas, valid, size, classes.seen)
            for own, masks, valid, size in zip(
                scores, output.mask_logits, valid_sizes, output_sizes, strict=True
            )
        ]

    def classify(
        self, output: DecoderOutput, images: Tensor, valid_sizes: Sequence[Size], classes: InferenceClasses
    ) -> Tensor:
        """Scores [B, Q, K + 1] of the masks, fused as the settings say; no object is last."""
        if self.nameless:
            self._check_mode()  # a copy may have other settings
            clip_logits = self._clip_class_logits(output, images, valid_sizes, classes.clip_text)
            certain = torch.zeros_like(clip_logits[..., :1])
            return with_no_object(clip_logits.softmax(-1), certain)
        logits = self.mask_class_logits(output, classes.mask_text)
        if self.class_agnostic:
            no_object = torch.zeros_like(logits[..., :1])
            none = torch.full_like(no_object, -torch.inf)
        elif output.object_logits is None:
            no_object = logits.softmax(-1)[..., -1:]
            none, logits = logits[..., -1:], logits[..., :-1]
        else:
            no_object = output.object_logits.softmax(-1)[..., -1:]
            odds = output.object_logits[..., 1:] - output.object_logits[..., :1]
            none = logits.logsumexp(-1, keepdim=True) + odds
        settings, share, rule = self.classifier, classes.clip_share, self.classifier.rule
        if settings.mode == "diffusion":
            return with_no_object(logits.softmax(-1), no_object)
        if settings.mode == "discriminative":
            share = torch.ones_like(share)
            rule = "normalised" if rule == "flat_seen" else rule  # it leaves seen classes to the head
        clip_logits = self._clip_class_logits(output, images, valid_sizes, classes.clip_text)
        no_object = adjust_no_object(no_object, clip_logits, settings.objectness_share)
        return RULES[rule](Scores(logits, none, no_object, clip_logits, share, classes.seen))

    def _clip_class_logits(
        self, output: DecoderOutput, images: Tensor, valid_sizes: Sequence[Size], text: TextClasses
    ) -> Tensor:
        embeddings = output.mask_embed  # CLIP's, of refined masks
        if self.refinement is None:
            embeddings = self.embed_regions(output.mask_logits, images, valid_sizes, output.clip_map)
        logits = cosine_logits(embeddings, text.embeddings, self.clip.logit_scale)
        return max_over_synonyms(logits, text.counts)

    def embed_regions(
        self,
        mask_logits: Tensor,
        images: Tensor,
        valid_sizes: Sequence[Size],
        clip_map: Tensor | None = None,
    ) -> Tensor:
        """CLIP's embeddings [B, Q, D] of masks [B, Q, h, w], not normalised; see :class:`Regions`."""
        canvas, views = (images.shape[2], images.shape[3]), list(valid_sizes)
        mask_views = views
        if self.published_quirks:
            high, wide = (max(side) for side in zip(*valid_sizes, strict=True))
            views, mask_views = [(high, wide)] * len(images), [canvas] * len(images)
        threshold = self.classifier.crop_threshold
        regions = Regions(images, views, mask_logits, mask_views, threshold, clip_map)
        return REGIONS[self.classifier.regions](self.clip, regions)


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Images [3, H, W] zero-padded to one canvas, whose sides are multiples of 64, and their sizes."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in zip(*sizes, strict=True))
    padded = [
        F.pad(image, (0, width - w, 0, height - h)) for image, (h, w) in zip(images, sizes, strict=True)
    ]
    return torch.stack(padded), sizes
