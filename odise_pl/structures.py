"""The dataclasses that cross module borders.

Sizes are ``(height, width)`` in pixels; categories are contiguous indices into a
:class:`~odise_pl.vocabulary.Vocabulary`; images are RGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Size = tuple[int, int]
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
        score: confidence in 0..1, 1 for truth.
    """

    id: int
    category: int
    isthing: bool
    iscrowd: bool = False
    score: float = 1.0


@dataclass(frozen=True)
class PanopticSegmentation(TensorStruct):
    """A panoptic map, truth or prediction.

    Attributes:
        ids: integer [H, W]; the segment id of each pixel, 0 for void.
        segments: what the ids mean, each id once.
    """

    ids: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class TrueInstances(TensorStruct):
    """Annotated objects of one image, whose masks may overlap.

    Attributes:
        labels: int64 [N], contiguous classes.
        masks: bool [N, H, W].
        crowd: bool [N], groups that are not split into objects.
        areas: float64 [N], pixels as annotated, by which COCO tells small objects from large ones.
    """

    labels: Tensor
    masks: Tensor
    crowd: Tensor
    areas: Tensor


@dataclass(frozen=True)
class Truth(TensorStruct):
    """What predictions of one image are compared with.

    Attributes:
        panoptic: the panoptic map.
        instances: objects for mask AP; None if they are the things of the panoptic map.
        semantic: integer [H, W], class of each pixel and -1 for none; None if the panoptic map says it.
    """

    panoptic: PanopticSegmentation
    instances: TrueInstances | None = None
    semantic: Tensor | None = None


@dataclass(frozen=True)
class Targets(TensorStruct):
    """Training truth of one image on the batch's canvas; crowd segments are left out.

    Attributes:
        labels: int64 [N], contiguous classes.
        masks: bool [N, H, W], each with at least one pixel, on the padded canvas.
    """

    labels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Sample(TensorStruct):
    """One transformed image.

    Attributes:
        image: float32 [3, H, W] in 0..1.
        targets: training truth at the image's (transformed) size.
        image_id: the data set's id.
        key: the sample's key in its shard.
        original_size: size before the transform.
        captions: every caption the data set has for the image, may be empty.
        truth: at the original size; None in training.
        words: noun phrases of one caption, drawn for the grounding loss; none if not asked for or not there.
        labelled: False if nobody has said what is in the image: no target is then no statement.
        generated_caption: what a captioning model said of the whole image, before any transform; None if
            none was asked.
    """

    image: Tensor
    targets: Targets
    image_id: int
    key: str
    original_size: Size
    captions: tuple[str, ...] = ()
    truth: Truth | None = None
    words: tuple[str, ...] = ()
    labelled: bool = True
    generated_caption: str | None = None


@dataclass(frozen=True)
class Batch(TensorStruct):
    """Images collated on one zero-padded canvas; the tuples have one entry per image.

    Attributes:
        images: float32 [B, 3, H, W] in 0..1, zero right of and below each valid size.
        valid_sizes: size of each image before it was padded to the canvas.
        targets: training truth, masks on the canvas.
        original_sizes: size before the transform: what predictions are resized to.
        truths: at the original size, None in training.
        skipped: why samples of the batch were skipped or, in training, replaced: one text each.
        left_out: how many were.
        number: place among all batches of an evaluation set, whatever the number of devices; -1 in training.
        words: noun phrases drawn for each image, see :class:`Sample`; empty stands for none anywhere.
        labelled: whether the targets say what is in each image; empty stands for all.
        generated_captions: see :class:`Sample`; empty stands for none anywhere.
    """

    images: Tensor
    valid_sizes: tuple[Size, ...]
    targets: tuple[Targets, ...]
    image_ids: tuple[int, ...]
    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    original_sizes: tuple[Size, ...]
    truths: tuple[Truth | None, ...]
    skipped: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    labelled: tuple[bool, ...] = ()
    left_out: int = 0
    generated_captions: tuple[str | None, ...] = ()
    number: int = -1

    def __post_init__(self) -> None:
        # frozen, so that defaults of the right length have to be set this way
        if not self.words:
            object.__setattr__(self, "words", ((),) * len(self.image_ids))
        if not self.labelled:
            object.__setattr__(self, "labelled", (True,) * len(self.image_ids))
        if not self.generated_captions:
            object.__setattr__(self, "generated_captions", (None,) * len(self.image_ids))

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class MaskPredictions(TensorStruct):
    """What one prediction head says of a batch (Q queries, K classes, D text dimensions).

    Attributes:
        class_logits: [B, Q, K + 1], the last column is "no object".
        mask_logits: [B, Q, h, w] at stride 4 of the padded image.
        mask_embed: [B, Q, D], to be compared with text embeddings (not normalised).
        logit_scale: scalar that multiplies cosine similarities.
    """

    class_logits: Tensor
    mask_logits: Tensor
    mask_embed: Tensor
    logit_scale: Tensor


@dataclass(frozen=True)
class Instances(TensorStruct):
    """Scored object masks of one image: labels int64 [M], scores float [M], masks bool [M, H, W]."""

    labels: Tensor
    scores: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Prediction(TensorStruct):
    """Everything that is said of one image at its original size.

    Attributes:
        panoptic: the panoptic map.
        instances: scored masks of things.
        semantic: int64 [H, W], the best class of each pixel; -1 is none.
    """

    panoptic: PanopticSegmentation
    instances: Instances
    semantic: Tensor
