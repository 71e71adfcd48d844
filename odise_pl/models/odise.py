"""The network: from images and a vocabulary to mask predictions and panoptic results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.errors import SettingError, check_number
from odise_pl.models.backbones.captioners import Captions
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.backbones.feature_backbone import FeatureBackbone
from odise_pl.models.backbones.text_cache import TextCache
from odise_pl.models.classifiers import (
    TextProjection,
    cosine_logits,
    fuse,
    max_over_synonyms,
    resize_to_square,
    visible_patches,
    with_no_object,
)
from odise_pl.models.heads.mask_decoder import DecoderOutput, MaskDecoder
from odise_pl.models.heads.pixel_decoder import PixelDecoder
from odise_pl.models.inference import InferenceSettings, NetworkPrediction, predict
from odise_pl.structures import MaskPredictions, Size, TensorStruct
from odise_pl.vocabulary import Vocabulary

CANVAS_MULTIPLE = 64
MODES = ("both", "diffusion", "discriminative")
WORD_PROMPT = "a photo of a {}."


@dataclass(frozen=True)
class ClassifierSettings:
    """Class scoring at inference (section 3.5 of the paper).

    Attributes:
        mode: ``diffusion`` scores, ``discriminative`` (masked CLIP) scores, or ``both`` fused.
        seen_share: exponent of CLIP for classes that share a name with a training class (alpha).
        unseen_share: exponent of CLIP for all other classes (beta).
        mask_prompt: prompt of class names for the mask embeddings; ``{}`` is the name.
        clip_prompt: prompt of class names for masked CLIP.
    """

    mode: str = "both"
    seen_share: float = 0.3
    unseen_share: float = 0.7
    mask_prompt: str = "{}"
    clip_prompt: str = "a photo of a {}."

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SettingError(f"classifier.mode={self.mode}: choose one of {', '.join(MODES)}")
        check_number("fusion.seen_share", self.seen_share, 0, whole=False, most=1)
        check_number("fusion.unseen_share", self.unseen_share, 0, whole=False, most=1)
        for name in ("mask_prompt", "clip_prompt"):
            if "{}" not in getattr(self, name):
                raise SettingError(f"fusion.{name}={getattr(self, name)!r} needs {{}} for the class name")


@dataclass(frozen=True)
class TextClasses(TensorStruct):
    """Embedded names: ``embeddings`` [sum(counts), D] and the number of names of each class.

    The counts are a tensor [K] where they are an input of an exported graph.
    """

    embeddings: Tensor
    counts: tuple[int, ...] | Tensor


@dataclass(frozen=True)
class InferenceClasses(TensorStruct):
    """An embedded vocabulary for inference.

    Attributes:
        mask_text: names for the mask embeddings.
        clip_text: names for masked CLIP.
        clip_share: [K], exponent of CLIP's probabilities.
        isthing: one flag per class.
    """

    mask_text: TextClasses
    clip_text: TextClasses
    clip_share: Tensor
    isthing: tuple[bool, ...]


class Odise(nn.Module):
    """Open-vocabulary panoptic segmentation on features of a frozen network.

    Args:
        backbone: images to a feature pyramid.
        pixel_decoder: pyramid to pixel features.
        mask_decoder: pixel features to masks and their embeddings.
        text_projection: compares mask embeddings with texts.
        clip: the shared frozen CLIP.
        classifier: class scoring at inference.
        inference: thresholds of the results.
        published_quirks: reproduce the release, whose masked CLIP combines unpadded images with padded masks;
            by default both are unpadded.

    Attributes:
        mapped: whether frozen weights are still in mapped files, see ``build_odise``.
    """

    def __init__(
        self,
        backbone: FeatureBackbone,
        pixel_decoder: PixelDecoder,
        mask_decoder: MaskDecoder,
        text_projection: TextProjection,
        clip: FrozenCLIP,
        classifier: ClassifierSettings,
        inference: InferenceSettings,
        published_quirks: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.pixel_decoder, self.mask_decoder = backbone, pixel_decoder, mask_decoder
        self.text_projection, self.clip = text_projection, clip
        self.classifier, self.inference = classifier, inference
        self.published_quirks = published_quirks
        self.mapped = False
        self._texts = TextCache(clip.encode_text)

    def decode(self, images: Tensor, captions: Captions = None) -> list[DecoderOutput]:
        """All decoder outputs.

        Args:
            images: [B, 3, H, W] in 0..1, sides multiples of 64.
            captions: one precomputed caption per image, for captioners that use them.
        """
        return self.mask_decoder(self.pixel_decoder(self.backbone(images, captions)))

    def forward(
        self, images: Tensor, classes: TextClasses, captions: Captions = None
    ) -> list[MaskPredictions]:
        """Training predictions of every decoder output.

        Args:
            images, captions: see :meth:`decode`.
            classes: the training classes; the caption model ignores them.
        """
        return [self._training_prediction(output, classes) for output in self.decode(images, captions)]

    def _training_prediction(self, output: DecoderOutput, classes: TextClasses) -> MaskPredictions:
        logits = output.object_logits
        if logits is None:
            logits = self._mask_class_logits(output, classes)
        return MaskPredictions(logits, output.mask_logits, output.mask_embed, output.logit_scale)

    def _mask_class_logits(self, output: DecoderOutput, classes: TextClasses) -> Tensor:
        return self.text_projection(output.mask_embed, classes.embeddings, classes.counts, output.logit_scale)

    def encode_classes(self, labels: Sequence[Sequence[str]], prompt: str = "{}") -> TextClasses:
        """Embed every name of each class in ``prompt``, in full precision."""
        texts = [prompt.replace("{}", name) for names in labels for name in names]
        with torch.autocast(self.clip.mean.device.type, enabled=False):
            embeddings = self.clip.encode_text(texts)
        return TextClasses(embeddings, tuple(len(names) for names in labels))

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
        prompts = [WORD_PROMPT.replace("{}", word) for of_image in words for word in of_image]
        count = torch.tensor([len(of_image) for of_image in words], device=self.clip.mean.device)
        valid = torch.arange(places, device=count.device) < count[:, None]
        text = self.clip.mean.new_zeros(*valid.shape, self.clip.embed_dim)
        if prompts:
            text[valid] = self._texts(prompts, text.device).to(text)
        # padding is projected, then masked: the projection needs a gradient on ranks without words
        return self.text_projection.proj(text).float().masked_fill(~valid[..., None], 0), valid

    def prepare(self, vocabulary: Vocabulary, training: Vocabulary | None) -> InferenceClasses:
        """Embed a vocabulary for :meth:`predict`; classes that share a name with ``training`` are seen."""
        seen = vocabulary.overlap(training) if training else (False,) * len(vocabulary)
        settings = self.classifier
        mask_text = self.encode_classes(vocabulary.labels, settings.mask_prompt)
        same = settings.clip_prompt == settings.mask_prompt
        share = torch.tensor([settings.seen_share if s else settings.unseen_share for s in seen])
        return InferenceClasses(
            mask_text,
            mask_text if same else self.encode_classes(vocabulary.labels, settings.clip_prompt),
            share.to(self.clip.mean.device),
            vocabulary.isthing,
        )

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        valid_sizes: Sequence[Size],
        output_sizes: Sequence[Size],
        classes: InferenceClasses,
        captions: Captions = None,
    ) -> list[NetworkPrediction]:
        """Panoptic, instance and semantic results of every image, computed on first use.

        Args:
            images: [B, 3, H, W] in 0..1, zero-padded, sides multiples of 64.
            valid_sizes: size of each image on the canvas.
            output_sizes: size of each result.
            classes: from :meth:`prepare`.
            captions: see :meth:`decode`.
        """
        output = self.decode(images, captions)[-1]
        logits = self.classify(output, images, valid_sizes, classes).float()
        canvas = (images.shape[2], images.shape[3])
        return [
            predict(
                logits[i], output.mask_logits[i].float(), classes.isthing, self.inference, canvas, valid, size
            )
            for i, (valid, size) in enumerate(zip(valid_sizes, output_sizes, strict=True))
        ]

    def classify(
        self, output: DecoderOutput, images: Tensor, valid_sizes: Sequence[Size], classes: InferenceClasses
    ) -> Tensor:
        """Fused class logits, ``log(p + 1e-8)``: [B, Q, K + 1] with no object last."""
        logits = self._mask_class_logits(output, classes.mask_text)
        if output.object_logits is None:
            no_object, logits = logits.softmax(-1)[..., -1:], logits[..., :-1]
        else:
            no_object = output.object_logits.softmax(-1)[..., -1:]
        if self.classifier.mode == "diffusion":
            return with_no_object(logits.softmax(-1), no_object)
        share = classes.clip_share
        if self.classifier.mode == "discriminative":
            share = torch.ones_like(share)
        clip_logits = self._clip_class_logits(output.mask_logits, images, valid_sizes, classes.clip_text)
        return with_no_object(fuse(logits, clip_logits, share), no_object)

    def _clip_class_logits(
        self, mask_logits: Tensor, images: Tensor, valid_sizes: Sequence[Size], text: TextClasses
    ) -> Tensor:
        embeddings = self._clip_mask_embeddings(mask_logits, images, valid_sizes)
        scale = self.clip.model.logit_scale.exp().clamp(max=100)
        return max_over_synonyms(cosine_logits(embeddings, text.embeddings, scale), text.counts)

    def _clip_mask_embeddings(
        self, mask_logits: Tensor, images: Tensor, valid_sizes: Sequence[Size]
    ) -> Tensor:
        size, canvas = self.clip.image_size, images.shape[-2:]
        views = shown = list(valid_sizes)
        if self.published_quirks:
            high, wide = (max(side) for side in zip(*valid_sizes, strict=True))
            views, shown = [(high, wide)] * len(images), [(canvas[0], canvas[1])] * len(images)
        squashed = [
            resize_to_square(image[None, :, :h, :w], (1.0, 1.0), size)
            for image, (h, w) in zip(images, views, strict=True)
        ]
        masks = [
            resize_to_square(mask[None], (h / canvas[0], w / canvas[1]), size)
            for mask, (h, w) in zip(mask_logits, shown, strict=True)
        ]
        visible = visible_patches(torch.cat(masks), self.clip.patch_size)
        return self.clip.encode_masks(self.clip.normalize(torch.cat(squashed)), visible)


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Images [3, H, W] zero-padded to one canvas, whose sides are multiples of 64, and their sizes."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in zip(*sizes, strict=True))
    padded = [
        F.pad(image, (0, width - w, 0, height - h)) for image, (h, w) in zip(images, sizes, strict=True)
    ]
    return torch.stack(padded), sizes
