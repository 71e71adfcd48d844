"""GroupViT (arXiv 2202.11094) as a network that segments: groups of patches, named by their embeddings.

Section 3.4 of the paper says how groups are named; the windows, the best classes and the background are those
of the published evaluation. K classes, G groups, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.errors import SettingError, check_number
from odise_pl.models.backbones.captioners import Captions
from odise_pl.models.backbones.groupvit import GroupViT
from odise_pl.models.backbones.sliding_window import cut_windows, plan_windows
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.classifiers.text import (
    InferenceClasses,
    TextClasses,
    at_least_float32,
    cosine_logits,
    embed_classes,
    max_over_synonyms,
)
from odise_pl.models.inference import InferenceSettings, PixelPrediction
from odise_pl.models.network import SegmentationNetwork
from odise_pl.models.ops.bands import Masks, ResizedMasks
from odise_pl.structures import Size, TensorStruct
from odise_pl.vocabulary import Vocabulary, normalise_name

BACKGROUND = "background"
_AT_ONCE = 8  # windows in a pass


@dataclass(frozen=True)
class GroupingSettings(InferenceSettings):
    """The published evaluation; thresholds of masks have no effect.

    Attributes:
        window: side of the windows in pixels; each covers half of the next.
        best_classes: of a window as a whole; its groups are named by no others.
        background_threshold: groups whose best class scores less are background, if the vocabulary has a
            class of that name. The authors' is 0.35 for Pascal Context.
    """

    window: int = 448
    best_classes: int = 5
    background_threshold: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("model.inference.window", self.window, 1)
        check_number("model.inference.best_classes", self.best_classes, 1)
        check_number(
            "model.inference.background_threshold", self.background_threshold, 0, whole=False, most=1
        )


def multiply_assignments(stages: Sequence[Tensor]) -> Tensor:
    """Soft assignment of patches to the last groups, from that of each stage to the groups of the next.

    Args:
        stages: [N, groups, patches], then [N, fewer groups, groups]; each sums to 1 over its first groups.

    Returns:
        [N, G, patches], float32 or better.
    """
    product = at_least_float32(stages[0])
    with torch.autocast(product.device.type, enabled=False):  # bfloat16 would cause ties
        for stage in stages[1:]:
            product = at_least_float32(stage) @ product
    return product


def group_masks(assignment: Tensor, side: int) -> Tensor:
    """The group of each pixel of square windows, as masks of 0 and 1.

    Args:
        assignment: [N, G, patches], row by row.
        side: of the windows in pixels.

    Returns:
        [N, G, side, side]; the soft assignment is resized (bilinear) before the best group is taken.
    """
    cells = round(assignment.shape[-1] ** 0.5)
    soft = F.interpolate(assignment.unflatten(-1, (cells, cells)), (side, side), mode="bilinear")
    return torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1)


def score_groups(group_logits: Tensor, whole_logits: Tensor, best_classes: int) -> Tensor:
    """Scores of the classes for each group of a window.

    The probability among the classes that are best for the whole window, times that among all classes.

    Args:
        group_logits: [N, G, K]; classes of -inf score 0.
        whole_logits: [N, K].
        best_classes: that are kept.
    """
    best = whole_logits.topk(min(best_classes, whole_logits.shape[-1])).indices
    others = torch.ones_like(whole_logits, dtype=torch.bool).scatter(-1, best, False)
    kept = group_logits.masked_fill(others[:, None], float("-inf"))
    return kept.softmax(-1) * group_logits.softmax(-1)


def add_background(scores: Tensor, background: int, threshold: float) -> Tensor:
    """Scores [N, G, K], where a group is background, with score 1, if its best class is below the threshold.

    A window in which no class reaches the threshold has its own best score as the threshold.
    """
    best = scores.amax(-1)
    reached = best.amax(-1, keepdim=True).clamp(max=threshold)
    return scores.index_copy(
        -1, torch.tensor([background], device=scores.device), (best < reached).to(scores)[..., None]
    )


class GroupPrediction(PixelPrediction):
    """Prediction by groups, computed on first use.

    Args:
        masks: [G, H, W] of groups, whose scores each pixel has in these shares.
        scores: [G, K].
        isthing: one flag per class.
    """

    def __init__(self, masks: Masks, scores: Tensor, isthing: Sequence[bool]) -> None:
        super().__init__(masks, isthing)
        self._scores = scores

    @cached_property
    def _best(self) -> tuple[Tensor, Tensor]:
        """The best class of each pixel and its score, [H, W] each; the first class wins ties."""
        masks = self._from[0]
        labels = torch.empty(masks.size, dtype=torch.int64, device=masks.device)
        best = self._scores.new_empty(masks.size)
        possible = self._scores.amax(0).nonzero()[:, 0]  # few classes score above 0
        scores = self._scores[:, possible].T
        for rows, band in masks.bands():
            inside = torch.stack([band(group) for group in range(masks.queries)])
            with torch.autocast(inside.device.type, enabled=False):
                best[rows], number = torch.einsum("kg,ghw->khw", scores, inside).max(0)
            labels[rows] = possible[number]
        return labels.cpu(), best.cpu()


@dataclass(frozen=True)
class PairEmbeddings(TensorStruct):
    """Embeddings of images and their texts, not normalised.

    Attributes:
        images: [B, D].
        captions: [B, 1, D].
        words: [B, T, D], of prompts with words of the captions.
        logit_scale: scalar factor of cosine similarities.
    """

    images: Tensor
    captions: Tensor
    words: Tensor
    logit_scale: Tensor


class GroupingNetwork(SegmentationNetwork):
    """GroupViT with the interface of :class:`~odise_pl.models.odise.Odise`.

    Args:
        backbone: image and text encoder; all of it trains.
        classifier: its prompts, ``mask_prompt`` of words in training, ``clip_prompt`` of names.
        inference: how images are segmented.

    Attributes:
        measures: what evaluations measure: groups of a class are not told apart.
        learns_names: training changes how a vocabulary is prepared.
        learns_labels: images and texts do without.

    Raises:
        SettingError: the classifier is not ``discriminative``, or averages the names of a class.
    """

    measures = ("semantic",)
    learns_names = True
    learns_labels = False
    words = None  # its own text encoder embeds names
    inference: GroupingSettings

    def __init__(
        self, backbone: GroupViT, classifier: ClassifierSettings, inference: GroupingSettings
    ) -> None:
        super().__init__()
        self.backbone, self.classifier, self.inference = backbone, classifier, inference
        self._check_classifier()

    def _check_classifier(self) -> None:
        if self.classifier.mode != "discriminative":
            raise SettingError(
                f"classifier.mode={self.classifier.mode}: GroupViT names its groups by itself; choose "
                "classifier=discriminative"
            )
        if self.classifier.mean_of_names:
            raise SettingError(
                "fusion.mean_of_names=true: GroupViT takes the best name of a class; set it to false"
            )

    @property
    def device(self) -> torch.device:
        """Of images."""
        return self.backbone.mean.device

    def forward(
        self, images: Tensor, captions: Sequence[str], words: Sequence[Sequence[str]]
    ) -> PairEmbeddings:
        """Embeddings of pairs, for training.

        Args:
            images: [B, 3, H, W] in 0..1, sides multiples of the patch.
            captions: one of each image.
            words: of each image, equally many; each is in a random one of the ``mask_prompt``.
        """
        segments, _ = self.backbone.group(images)
        templates = self.classifier.mask_prompt
        templates = [templates] if isinstance(templates, str) else templates
        flat = [word for of_image in words for word in of_image]
        drawn = torch.randint(len(templates), (len(flat),)).tolist()
        prompts = [templates[i].replace("{}", word) for i, word in zip(drawn, flat, strict=True)]
        texts = self.backbone.encode_text([*captions, *prompts])
        of_captions, of_words = texts.split([len(captions), len(prompts)])
        return PairEmbeddings(
            self.backbone.embed_segments(segments.mean(1)),
            of_captions[:, None],
            of_words.unflatten(0, (len(images), -1)),
            self.backbone.logit_scale,
        )

    @torch.no_grad()
    def prepare(self, vocabulary: Vocabulary, training: Vocabulary | None) -> InferenceClasses:
        """Embed a vocabulary for :meth:`predict`.

        The background is what no other class fits: it has no embedded names. ``training`` has no effect.
        """
        labels = [
            () if normalise_name(category.name) == BACKGROUND else category.names
            for category in vocabulary.categories
        ]
        if not any(labels):
            labels = [category.names for category in vocabulary.categories]
        text = embed_classes(self.backbone, labels, self.classifier.clip_prompt)
        share = torch.ones(len(vocabulary), device=self.device)
        return InferenceClasses(text, text, share, vocabulary.isthing)

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        valid_sizes: Sequence[Size],
        output_sizes: Sequence[Size],
        classes: InferenceClasses,
        captions: Captions = None,
    ) -> list[GroupPrediction]:
        """Results of every image, computed on first use; arguments as for ``Odise``, captions have no effect.

        Unlike ``Odise``, it does not look at the padding.
        """
        self._check_classifier()  # a copy may have other settings
        return [
            self._predict_image(image[None, :, :height, :width], output, classes)
            for image, (height, width), output in zip(images, valid_sizes, output_sizes, strict=True)
        ]

    def _predict_image(self, image: Tensor, output: Size, classes: InferenceClasses) -> GroupPrediction:
        masks, scores = self.find_groups(image, classes.clip_text)
        size = (image.shape[2], image.shape[3])
        resized = Masks(masks) if size == output else ResizedMasks(masks, size, size, output)
        return GroupPrediction(resized, scores, classes.isthing)

    def find_groups(self, image: Tensor, text: TextClasses) -> tuple[Tensor, Tensor]:
        """Groups of an image [1, 3, H, W] in windows; where these overlap, a pixel has one group of each.

        Returns:
            [W * G, H, W], the share of each group in a pixel.
            [W * G, K], its class scores.
        """
        height, width = image.shape[2:]
        windows = plan_windows(height, width, self.inference.window, per_side=2)
        side, patch = windows[0].side, self.backbone.patch_size
        cuts = cut_windows(image, windows, max(patch, side - side % patch))
        found = [self._segment_windows(part, side, text) for part in cuts.split(_AT_ONCE)]
        of_windows, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        masks = of_windows.new_zeros(*of_windows.shape[:2], height, width)
        for mask, part, w in zip(masks, of_windows, windows, strict=True):
            mask[:, w.top : w.top + side, w.left : w.left + side] = part
        masks = masks.flatten(0, 1)
        masks /= masks.sum(0)
        return masks, scores.flatten(0, 1)

    def _segment_windows(self, images: Tensor, side: int, text: TextClasses) -> tuple[Tensor, Tensor]:
        """Masks [N, G, side, side] and scores [N, G, K] of the groups of windows [N, 3, S, S]."""
        segments, stages = self.backbone.group(images)
        masks = group_masks(multiply_assignments(stages), side)
        both = torch.cat([segments, segments.mean(1, keepdim=True)], dim=1)
        cosines = cosine_logits(
            self.backbone.embed_segments(both), text.embeddings, self.backbone.logit_scale
        )
        logits = max_over_synonyms(cosines, text.counts)
        scores = score_groups(logits[:, :-1], logits[:, -1], self.inference.best_classes)
        unnamed = [index for index, count in enumerate(text.counts) if not count]
        for background in unnamed:
            scores = add_background(scores, background, self.inference.background_threshold)
        return masks, scores
