"""The backbone of every network: windows, captioner, frozen features, projections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odise_pl.errors import SettingError, check_number
from odise_pl.models.backbones.captioner_settings import MakeCaptioner
from odise_pl.models.backbones.captioners import Captions
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.backbones.contract import ConditioningSpec, Features
from odise_pl.models.backbones.pyramid import STRIDES, FeaturePyramid, PlainPyramid, Pyramid
from odise_pl.models.backbones.sliding_window import cut_windows, merge_windows, plan_windows
from odise_pl.structures import CANVAS_MULTIPLE, Size

WHOLE = "whole"
_AUTO = "auto"  # window_batch of checkpoints of earlier versions: 0
EVAL_WINDOWS = 8  # per forward pass; images of the paper have 4 (1024 x 1024) to 10 (1024 x 2560)


class FeatureBackbone(nn.Module):
    """A frozen network on the windows of images (section 3.2 of the paper).

    Args:
        features: the frozen network.
        captioner: maps windows [N, 3, S, S] and their images' captions to the conditioning; None for a
            network without conditioning, which runs without gradients unless it is trained.
        pyramid: the trainable projections.
        input_size: side in pixels to which windows are resized for the network.
        window: largest window side; None: the shorter image side; ``whole``: images as they are.
        window_batch: windows per forward pass; 0: all in training, at most ``EVAL_WINDOWS`` at inference.

    Raises:
        SettingError: sizes do not fit the strides, or the window batch is no number of windows.
    """

    def __init__(
        self,
        features: Features,
        captioner: nn.Module | None,
        pyramid: Pyramid,
        input_size: int = 512,
        window: int | str | None = 512,
        window_batch: int = 0,
    ) -> None:
        super().__init__()
        if window == WHOLE and features.fixed_size:
            raise SettingError(
                f"backbone.window={WHOLE}: this network takes squares of one size; "
                "set backbone.window=512, or null for squares of the shorter side"
            )
        if window == WHOLE and CANVAS_MULTIPLE % features.input_multiple:
            raise SettingError(
                f"backbone.window={WHOLE}: images are padded to multiples of {CANVAS_MULTIPLE} pixels, which "
                f"do not divide into patches of {features.input_multiple}; set backbone.window=512"
            )
        if window != WHOLE:
            features.check_size(input_size, "backbone.input_size")
        cut = window not in (None, WHOLE)
        if cut and (not isinstance(window, int) or window < STRIDES[-1] or window % STRIDES[-1]):
            raise SettingError(
                f"backbone.window={window} must be a multiple of {STRIDES[-1]}, null or {WHOLE}"
            )
        check_number("backbone.window_batch", window_batch)
        self.features, self.captioner, self.pyramid = features, captioner, pyramid
        self.input_size, self.window_batch = input_size, window_batch
        self.window, self.whole = None if isinstance(window, str) else window, window == WHOLE

    def forward(self, images: Tensor, captions: Captions = None) -> list[Tensor]:
        """The pyramid s2..s5.

        Args:
            images: [B, 3, H, W] in 0..1, sides multiples of 64.
            captions: one precomputed caption per image, shared by its windows, for captioners that use them.

        Returns:
            four maps [B, channels, H / s, W / s], s in 4, 8, 16, 32.
        """
        height, width = images.shape[-2:]
        if self.whole:
            return self._pyramid_of(images, captions, (height, width))
        windows = plan_windows(height, width, self.window)
        side = windows[0].side
        cuts = cut_windows(images, windows, self.input_size)
        captions = list(captions or ()) * len(windows)
        size = self._windows_per_pass(len(cuts))
        pyramids = [
            self._pyramid_of(part, captions[i * size : (i + 1) * size], (side, side))
            for i, part in enumerate(cuts.split(size))
        ]
        levels = [torch.cat(parts) for parts in zip(*pyramids, strict=True)]
        strides = self.pyramid.strides
        return [merge_windows(x, windows, (height, width), s) for x, s in zip(levels, strides, strict=True)]

    @property
    def gives_clip_map(self) -> bool:
        """Whether the last level is the last map of the shared CLIP for the whole image."""
        return self.whole and isinstance(self.pyramid, PlainPyramid) and bool(self.features.is_clip)

    def passes(self, images: Tensor) -> int:
        """Number of passes of :meth:`forward` through the frozen networks for images [B, 3, H, W]."""
        if self.whole:
            return 1
        windows = len(images) * len(plan_windows(images.shape[2], images.shape[3], self.window))
        return -(-windows // self._windows_per_pass(windows))

    def _windows_per_pass(self, windows: int) -> int:
        return self.window_batch or (windows if self.training else EVAL_WINDOWS)

    def _pyramid_of(self, images: Tensor, captions: Captions, size: Size) -> list[Tensor]:
        """The pyramid of images or windows [N, 3, h, w], which had this size before they were resized."""
        if self.captioner is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.features.trained):
                maps = self.features(images)
        else:
            maps = self.features(images, self.captioner(images, captions))
        pyramid: list[Tensor] = self.pyramid(maps, size)
        return pyramid


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(ABC):
    """Settings of every backbone; a subclass adds its network's.

    Attributes:
        input_size: side in pixels to which windows are resized for the network.
        window: largest side of a window; None: the shorter side of the image; ``whole``: no windows, for
            networks that take any size.
        window_batch: see :class:`FeatureBackbone`.
        channels: width of the feature pyramid; None: the network's own widths, without projections.
        source: download command of the weights, for messages.
    """

    input_size: int = 512
    window: int | str | None = 512
    window_batch: int | str = 0
    channels: int | None = 512
    source: str = ""

    def __post_init__(self) -> None:
        check_number("backbone.input_size", self.input_size, 1)
        if isinstance(self.window_batch, str) and self.window_batch != _AUTO:
            check_number("backbone.window_batch", self.window_batch)
        if self.channels is not None:
            check_number("backbone.channels", self.channels, 1)

    @property
    @abstractmethod
    def conditioned(self) -> bool:
        """Whether the network takes a conditioning, so that it needs a captioner."""

    @abstractmethod
    def load(self, mapped: bool = False) -> tuple[Features, ConditioningSpec | None]:
        """The network with its weights, and what can be conditioned; ``mapped`` as in ``build_odise``.

        Raises:
            UserError: weights are missing or do not fit.
        """

    def load_beside(self, clip: FrozenCLIP, mapped: bool = False) -> tuple[Features, ConditioningSpec | None]:
        """As :meth:`load`, for a network that may share weights with CLIP."""
        return self.load(mapped)

    def projections(self, features: Features) -> Pyramid:
        """The trainable projections of the taps."""
        taps = features.taps
        return PlainPyramid(taps) if self.channels is None else FeaturePyramid(taps, self.channels)

    def build(self, clip: FrozenCLIP, captioner: MakeCaptioner, mapped: bool = False) -> FeatureBackbone:
        """The backbone with its frozen weights loaded; ``mapped`` as in ``build_odise``.

        Raises:
            SettingError: the captioner does not fit the network.
        """
        if self.conditioned and captioner is None:
            raise SettingError(
                "captioner=none: this backbone is a diffusion model, which needs a captioner: "
                "choose captioner=empty"
            )
        if not self.conditioned and captioner is not None:
            raise SettingError("captioner: this backbone takes no text: choose captioner=none")
        features, condition = self.load_beside(clip, mapped)
        made = None if captioner is None or condition is None else captioner(clip, condition)
        batch = 0 if isinstance(self.window_batch, str) else self.window_batch
        pyramid = self.projections(features)
        return FeatureBackbone(features, made, pyramid, self.input_size, self.window, batch)
