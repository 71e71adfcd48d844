"""The diffusion backbone: windows, captioner, frozen features, projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odise_pl.errors import SettingError, check_number
from odise_pl.models.backbones.captioners import Captions, Conditioning
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.pyramid import STRIDES, FeaturePyramid
from odise_pl.models.backbones.sliding_window import cut_windows, merge_windows, plan_windows

EVAL_WINDOWS = 8  # per forward pass; images of the paper have 4 (1024 x 1024) to 10 (1024 x 2560)


class DiffusionBackbone(nn.Module):
    """The published backbone (section 3.2 of the paper).

    Args:
        features: the frozen diffusion model.
        captioner: maps windows [N, 3, S, S] and their images' captions to :class:`Conditioning`.
        pyramid: the trainable projections.
        input_size: side in pixels to which windows are resized for the diffusion model.
        window: largest window side; None: the shorter image side.
        window_batch: windows per forward pass; 0: all in training, at most ``EVAL_WINDOWS`` at inference.

    Raises:
        SettingError: sizes do not fit the strides, or the window batch is negative.
    """

    def __init__(
        self,
        features: LatentDiffusionFeatures,
        captioner: nn.Module,
        pyramid: FeaturePyramid,
        input_size: int = 512,
        window: int | None = 512,
        window_batch: int = 0,
    ) -> None:
        super().__init__()
        multiple = features.input_multiple
        if input_size < multiple or input_size % multiple:
            raise SettingError(f"backbone.input_size={input_size} must be a multiple of {multiple}")
        if window is not None and (window < STRIDES[-1] or window % STRIDES[-1]):
            raise SettingError(f"backbone.window={window} must be a multiple of {STRIDES[-1]}, or null")
        check_number("backbone.window_batch", window_batch)
        self.features, self.captioner, self.pyramid = features, captioner, pyramid
        self.input_size, self.window, self.window_batch = input_size, window, window_batch

    def forward(self, images: Tensor, captions: Captions = None) -> list[Tensor]:
        """The pyramid s2..s5.

        Args:
            images: [B, 3, H, W] in 0..1, sides multiples of 64.
            captions: one precomputed caption per image, shared by its windows, for captioners that use them.

        Returns:
            four maps [B, channels, H / s, W / s], s in 4, 8, 16, 32.
        """
        height, width = images.shape[-2:]
        windows = plan_windows(height, width, self.window)
        side = windows[0].side
        cuts = cut_windows(images, windows, self.input_size)
        captions = list(captions or ()) * len(windows)
        size = self._windows_per_pass(len(cuts))
        pyramids = [
            self._window_pyramid(part, captions[i * size : (i + 1) * size], side)
            for i, part in enumerate(cuts.split(size))
        ]
        levels = [torch.cat(parts) for parts in zip(*pyramids, strict=True)]
        return [merge_windows(x, windows, (height, width), s) for x, s in zip(levels, STRIDES, strict=True)]

    def passes(self, images: Tensor) -> int:
        """Number of passes of :meth:`forward` through the frozen networks for images [B, 3, H, W]."""
        windows = len(images) * len(plan_windows(images.shape[2], images.shape[3], self.window))
        return -(-windows // self._windows_per_pass(windows))

    def _windows_per_pass(self, windows: int) -> int:
        return self.window_batch or (windows if self.training else EVAL_WINDOWS)

    def _window_pyramid(self, cuts: Tensor, captions: Captions, side: int) -> list[Tensor]:
        condition: Conditioning = self.captioner(cuts, captions)
        return self.pyramid(self.features(cuts, condition.context, condition.time), side)
