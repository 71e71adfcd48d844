"""The network as one function of tensors, which ONNX can express."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from odise_pl.errors import SettingError
from odise_pl.models.backbones.captioners import TextCaptioner
from odise_pl.models.classifiers.text import InferenceClasses, TextClasses
from odise_pl.models.dense import DenseNetwork
from odise_pl.models.grouping import GroupingNetwork
from odise_pl.models.network import SegmentationNetwork
from odise_pl.models.odise import Odise
from odise_pl.structures import CANVAS_MULTIPLE, Size

TEXT_INPUTS = ("mask_text", "clip_text", "counts", "clip_share")


class NetworkGraph(nn.Module):
    """What a network finds in one image.

    Args:
        model: the network, in eval mode.
        size: of the image, sides multiples of 64; None: one window.
        classes: embedded words that become constants; None makes them inputs.
        head_only: pixel decoder, mask decoder and their class scores, without backbone and CLIP.

    Attributes:
        output_names: ``class_scores`` [Q, K + 1] with no object last, and ``mask_logits`` [Q, h, w] of the
            whole image; of dense methods ``pixel_logits`` [K, h, w], of GroupViT ``pixel_scores`` [K, H, W].

    Raises:
        SettingError: a side is not a multiple of 64, or the network cannot be exported like this.
    """

    model: Any

    def __init__(
        self, model: SegmentationNetwork, size: Size | None, classes: InferenceClasses | None, head_only: bool
    ) -> None:
        super().__init__()
        self.model, self.size = model, size or _window(model)
        self.classes, self.head_only = classes, head_only
        _check_size(self.size)
        if isinstance(model, Odise):
            _check(model, classes, head_only)
            dense = isinstance(model, DenseNetwork)
            self.output_names = ["pixel_logits"] if dense else ["class_scores", "mask_logits"]
        else:
            _check_grouping(classes, head_only)
            self.output_names = ["pixel_scores"]
        if head_only:
            self.model = copy.copy(model)
            self.model.classifier = replace(model.classifier, mode="diffusion")

    def forward(self, inputs: tuple[Tensor, ...], text: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs.

        Args:
            inputs: image [1, 3, H, W] in 0..1; or with ``head_only`` the pyramid s2, s3, s4, s5, each
                [1, channels, H / s, W / s] with the backbone's strides.
            text: see :func:`text_inputs`; none if the words are constants.
        """
        classes = self.classes or _classes_of(text)
        if isinstance(self.model, GroupingNetwork):
            shares, scores = self.model.find_groups(inputs[0], classes.clip_text)
            return (torch.einsum("gk,ghw->khw", scores, shares),)
        decoded = (
            self.model.mask_decoder(self.model.pixel_decoder(inputs))
            if self.head_only
            else self.model.decode(inputs[0])
        )
        output = decoded[-1]
        if isinstance(self.model, DenseNetwork):
            return (self.model.classify_cells(output, classes.mask_text)[0],)
        scores = self.model.classify(output, inputs[0], [self.size], classes)
        return scores[0].float(), output.mask_logits[0].float()

    @property
    def input_names(self) -> list[str]:
        """Names of all inputs in order."""
        images = [f"s{i}" for i in range(2, 6)] if self.head_only else ["image"]
        return [*images, *(TEXT_INPUTS if self.classes is None else ())]

    def example(self, classes: InferenceClasses) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Arguments of :meth:`forward` with an empty image and some classes."""
        height, width = self.size
        shapes = [(3, height, width)]
        if self.head_only:
            pyramid = self.model.backbone.pyramid
            levels = zip(pyramid.channels, pyramid.strides, strict=True)
            shapes = [(channels, height // s, width // s) for channels, s in levels]
        images = tuple(torch.zeros(1, *shape) for shape in shapes)
        return images, () if self.classes else text_inputs(classes)

    @property
    def dynamic_shapes(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Inputs whose first side varies: names and classes."""
        images: tuple[dict[int, Any], ...] = ({},) * (4 if self.head_only else 1)
        if self.classes is not None:
            return images, ()
        own, clip, classes = ({0: torch.export.Dim(name)} for name in ("names", "clip_names", "classes"))
        return images, (own, clip, classes, classes)


def text_inputs(classes: InferenceClasses) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embedded words as tensors, in the order of ``TEXT_INPUTS``.

    ``mask_text`` and ``clip_text`` [names, width] float32, ``counts`` [classes] int64 with the names of each
    class, ``clip_share`` [classes] float32 with CLIP's weight.
    """
    counts = torch.as_tensor(classes.mask_text.counts)
    return classes.mask_text.embeddings, classes.clip_text.embeddings, counts, classes.clip_share


def _classes_of(text: tuple[Tensor, ...]) -> InferenceClasses:
    mask_text, clip_text, counts, clip_share = text
    return InferenceClasses(TextClasses(mask_text, counts), TextClasses(clip_text, counts), clip_share, ())


def _window(model: SegmentationNetwork) -> Size:
    """One window, enlarged to the next multiple."""
    if isinstance(model, GroupingNetwork):
        side = model.inference.window
    else:
        assert isinstance(model, Odise)
        side = model.backbone.window or model.backbone.input_size
    side = -(-side // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    return side, side


def _check(model: Odise, classes: InferenceClasses | None, head_only: bool) -> None:
    if head_only:
        if model.nameless:
            raise SettingError("--head-only: CLIP names these masks, and the head is without it")
        return
    if isinstance(model.backbone.captioner, TextCaptioner):
        raise SettingError(
            "captioners that write sentences cannot be exported: use --head-only, or a checkpoint "
            "trained with captioner=implicit or captioner=empty"
        )
    settings = model.classifier
    if settings.rule == "flat_seen" and settings.mode != "diffusion" and classes is None:
        raise SettingError("fusion.rule=flat_seen has to know which words are seen: add --words")


def _check_grouping(classes: InferenceClasses | None, head_only: bool) -> None:
    if classes is None:
        raise SettingError("GroupViT compares words with each other: add --words")
    if head_only:
        raise SettingError("--head-only: GroupViT has no head beside its backbone")


def _check_size(size: Size) -> None:
    if any(side < CANVAS_MULTIPLE or side % CANVAS_MULTIPLE for side in size):
        nearest = "x".join(str(max(1, round(s / CANVAS_MULTIPLE)) * CANVAS_MULTIPLE) for s in size)
        raise SettingError(
            f"--size {size[0]}x{size[1]}: height and width must be multiples of {CANVAS_MULTIPLE}, "
            f"for example {nearest}"
        )
