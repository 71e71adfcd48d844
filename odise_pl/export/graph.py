"""The network as one function of tensors, which ONNX can express."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from odise_pl.errors import SettingError
from odise_pl.models.backbones.captioners import TextCaptioner
from odise_pl.models.backbones.pyramid import STRIDES
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.classifiers.text import InferenceClasses, TextClasses
from odise_pl.models.odise import CANVAS_MULTIPLE, Odise
from odise_pl.structures import Size

TEXT_INPUTS = ("mask_text", "clip_text", "counts", "clip_share")
OUTPUTS = ("class_scores", "mask_logits")


class NetworkGraph(nn.Module):
    """Class scores and mask logits of one image.

    Args:
        model: the network, in eval mode.
        size: of the image; sides are multiples of 64.
        classes: embedded words that become constants; None makes them inputs.
        head_only: pixel decoder, mask decoder and their class scores, without backbone and CLIP.

    Raises:
        SettingError: a side is not a multiple of 64, the captioner generates sentences, or the classifier
            cannot be exported.
    """

    def __init__(self, model: Odise, size: Size, classes: InferenceClasses | None, head_only: bool) -> None:
        super().__init__()
        _check_size(size)
        if isinstance(model.backbone.captioner, TextCaptioner) and not head_only:
            raise SettingError(
                "captioners that write sentences cannot be exported: use --head-only, or a checkpoint "
                "trained with captioner=implicit or captioner=empty"
            )
        _check_classifier(model.classifier, classes, head_only)
        self.model, self.size, self.classes, self.head_only = model, size, classes, head_only
        if head_only:
            self.model = copy.copy(model)
            self.model.classifier = replace(model.classifier, mode="diffusion")

    def forward(self, inputs: tuple[Tensor, ...], text: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Scores and masks.

        Args:
            inputs: image [1, 3, H, W] in 0..1; or with ``head_only`` the pyramid s2, s3, s4, s5, each
                [1, channels, H / s, W / s].
            text: see :func:`text_inputs`; none if the words are constants.

        Returns:
            class scores [Q, K + 1], which sum to 1, with no object last, and mask logits [Q, H / 4, W / 4].
        """
        decoded = (
            self.model.mask_decoder(self.model.pixel_decoder(inputs))
            if self.head_only
            else self.model.decode(inputs[0])
        )
        output, classes = decoded[-1], self.classes or _classes_of(text)
        class_logits = self.model.classify(output, inputs[0], [self.size], classes)
        return class_logits[0].float().softmax(-1), output.mask_logits[0].float()

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
            levels = zip(self.model.backbone.pyramid.channels, STRIDES, strict=True)
            shapes = [(channels, height // s, width // s) for channels, s in levels]
        images = tuple(torch.zeros(1, *shape) for shape in shapes)
        return images, () if self.classes else text_inputs(classes)

    @property
    def dynamic_shapes(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Inputs whose first side varies: names and classes."""
        images: tuple[dict[int, Any], ...] = ({},) * (4 if self.head_only else 1)
        if self.classes is not None:
            return images, ()
        names, classes = {0: torch.export.Dim("names")}, {0: torch.export.Dim("classes")}
        return images, (names, names, classes, classes)


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


def _check_classifier(
    settings: ClassifierSettings, classes: InferenceClasses | None, head_only: bool
) -> None:
    if head_only or settings.mode == "diffusion":
        return
    if settings.regions == "cropped":
        raise SettingError(
            "fusion.regions=cropped cannot be exported, because crops vary in size: use --head-only"
        )
    if settings.rule == "flat_seen" and classes is None:
        raise SettingError("fusion.rule=flat_seen has to know which words are seen: add --words")


def _check_size(size: Size) -> None:
    if any(side < CANVAS_MULTIPLE or side % CANVAS_MULTIPLE for side in size):
        nearest = "x".join(str(max(1, round(s / CANVAS_MULTIPLE)) * CANVAS_MULTIPLE) for s in size)
        raise SettingError(
            f"--size {size[0]}x{size[1]}: height and width must be multiples of {CANVAS_MULTIPLE}, "
            f"for example {nearest}"
        )
