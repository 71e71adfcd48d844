"""Dataclasses that several packages share.

Sizes are ``(height, width)`` in pixels; categories are contiguous indices into a
:class:`~odise_pl.vocabulary.Vocabulary`; images are RGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

Size = tuple[int, int]
# Divisor of the sides of padded images: the coarsest features have stride 32 of an image encoded at stride 2.
CANVAS_MULTIPLE = 64
_T = TypeVar("_T")


def _map_tensors(value: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor in nested structures, lists and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, TensorStruct):
        return value.map(function)
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


class TensorStruct:
    """A dataclass of tensors that moves as one (``to``, ``pin_memory``)."""

    def map(self: _T, function: Any) -> _T:
        changed = {f.name: _map_tensors(getattr(self, f.name), function) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: _T, device: torch.device | str, non_blocking: bool = False) -> _T:
        """The same structure with every tensor on ``device``; dtypes stay."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))  # type: ignore[attr-defined]

    def pin_memory(self: _T) -> _T:
        return self.map(lambda t: t.pin_memory())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: value of the segment's pixels in the map; 0 is void and never a segment.
        category: contiguous class index.
        isthing: countable object (True) or stuff (False).
        iscrowd: a group that is not split into instances; never scored (COCO panoptic API).
        score: confidence in 0..1; 1 for ground truth.
    """

    id: int
    category: int
    isthing: bool
    iscrowd: bool = False
    score: float = 1.0


@dataclass(frozen=True)
class PanopticSegmentation(TensorStruct):
    """A panoptic map, ground truth or prediction.

    Attributes:
        ids: integer [H, W]; the segment id of each pixel, 0 for void.
        segments: one entry per id.
    """

    ids: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class TrueInstances(TensorStruct):
    """Annotated objects of one image; masks may overlap.

    Attributes:
        labels: int64 [N], contiguous classes.
        masks: bool [N, H, W].
        crowd: bool [N], groups that are not split into objects.
        areas: float64 [N], annotated area in pixels; decides COCO's small, medium and large.
    """

    labels: Tensor
    masks: Tensor
    crowd: Tensor
    areas: Tensor


@dataclass(frozen=True)
class Truth(TensorStruct):
    """Ground truth of one image.

    Attributes:
        panoptic: the panoptic map.
        instances: objects for mask AP; None takes the things of the panoptic map.
        semantic: integer [H, W], class of each pixel, -1 for none; None takes the panoptic map's classes.
    """

    panoptic: PanopticSegmentation
    instances: TrueInstances | None = None
    semantic: Tensor | None = None


@dataclass(frozen=True)
class Targets(TensorStruct):
    """Training targets of one image on the batch's canvas; without crowd segments.

    Attributes:
        labels: int64 [N], contiguous classes.
        masks: bool [N, H, W], each with at least one pixel, on the padded canvas.
    """

    labels: Tensor
    masks: Tensor


@dataclass(frozen=True, kw_only=True)
class SampleInfo:
    """What a data set says about an image.

    Attributes:
        image_id: the data set's id.
        key: the sample's key in its shard.
        captions: all captions; may be empty.
        labelled: False if the image has no annotation; its empty targets then mean "unknown".
        generated_caption: a captioning model's caption of the whole untransformed image, if there is one.
        image_suffix: file name suffix of the image in its shard.
    """

    image_id: int
    key: str
    captions: tuple[str, ...] = ()
    labelled: bool = True
    generated_caption: str | None = None
    image_suffix: str = "jpg"


@dataclass(frozen=True, kw_only=True)
class Sample(SampleInfo, TensorStruct):
    """One transformed image.

    Attributes:
        image: uint8 [3, H, W], or floats in 0..1.
        targets: training targets at the image's (transformed) size.
        original_size: size before the transform.
        truth: at the original size; None in training.
        words: noun phrases of one randomly chosen caption, for the grounding loss.
    """

    image: Tensor
    targets: Targets
    original_size: Size
    truth: Truth | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch(TensorStruct):
    """Images on one zero-padded canvas; tuples have one entry per image.

    Attributes:
        pixels: uint8 [B, 3, H, W], or floats in 0..1; zero right of and below each valid size.
        valid_sizes: size of each image before padding.
        targets: training targets, masks on the canvas.
        original_sizes: size before the transform; predictions are resized to it.
        truths: at the original size; None in training.
        skipped: one reason for each sample that was skipped or, in training, replaced.
        number: index among all batches of an evaluation set, on any number of devices; -1 in training.
        words, labelled, generated_captions, image_suffixes: see :class:`Sample`.
    """

    pixels: Tensor
    valid_sizes: tuple[Size, ...]
    targets: tuple[Targets, ...]
    image_ids: tuple[int, ...]
    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    original_sizes: tuple[Size, ...]
    truths: tuple[Truth | None, ...]
    words: tuple[tuple[str, ...], ...]
    labelled: tuple[bool, ...]
    generated_captions: tuple[str | None, ...]
    image_suffixes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    number: int = -1

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def images(self) -> Tensor:
        """float32 [B, 3, H, W] in 0..1, made on the device: a quarter of the bytes leave the loader."""
        if self.pixels.is_floating_point():
            return self.pixels
        images = self.pixels.to(torch.float32)
        # A GPU would multiply by the reciprocal of a Python number, and round differently.
        return images.div_(torch.full((), 255.0, device=images.device))


@dataclass(frozen=True)
class MaskPredictions(TensorStruct):
    """Predictions of one decoder output for a batch (Q queries, K classes, D text dimensions).

    Attributes:
        class_logits: [B, Q, K + 1], the last column is "no object".
        mask_logits: [B, Q, h, w] at stride 4 of the padded image.
        mask_embed: [B, Q, D] in the space of the text embeddings, not normalised.
        logit_scale: scalar factor of cosine similarities.
        clip_logits: [B, Q, K] of a CLIP that is trained, for the last decoder output; else None.
        generated: [K, samples, D], features like ``mask_embed`` of each class; None without a generator.
    """

    class_logits: Tensor
    mask_logits: Tensor
    mask_embed: Tensor
    logit_scale: Tensor
    clip_logits: Tensor | None = None
    generated: Tensor | None = None


@dataclass(frozen=True)
class Instances(TensorStruct):
    """Scored object masks of one image: labels int64 [M], scores float [M], masks bool [M, H, W]."""

    labels: Tensor
    scores: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Prediction:
    """Results for one image at its original size.

    Attributes:
        panoptic: the panoptic map.
        instances: scored masks of things.
        semantic: int64 [H, W], the best class of each pixel; -1 for none.
    """

    panoptic: PanopticSegmentation
    instances: Instances
    semantic: Tensor
