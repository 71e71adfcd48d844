"""Putting the network together from settings: the one place that knows all its parts.

Loading weights is done here and only here, so a constructed module never touches a disk or a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from odise_pl.backbones.captioners import EmptyCaptioner, ImplicitCaptioner
from odise_pl.backbones.clip import CLIPArchitecture, FrozenCLIP, load_clip
from odise_pl.backbones.feature_backbone import DiffusionBackbone
from odise_pl.backbones.latent_diffusion import LatentDiffusionFeatures, check_timesteps
from odise_pl.backbones.pyramid import FeaturePyramid
from odise_pl.backbones.stable_diffusion import (
    DiffusionArchitecture,
    DiffusionModels,
    encode_prompts,
    load_diffusion,
)
from odise_pl.errors import SettingError
from odise_pl.heads.classifier import TextProjection
from odise_pl.heads.mask_decoder import MaskDecoder
from odise_pl.heads.pixel_decoder import PixelDecoder
from odise_pl.inference import InferenceSettings
from odise_pl.odise import ClassifierSettings, Odise

SUPERVISION = ("label", "caption")


@dataclass(frozen=True)
class BackboneSettings:
    """The diffusion model and how it is read.

    Attributes:
        weights: see :func:`load_diffusion`.
        architecture: sizes, for ``random`` and single files.
        timesteps: diffusion steps whose features are used.
        input_size: side to which windows are resized.
        train_window: largest window side in training.
        window_batch: windows per forward pass; 0 takes all at once.
        channels: width of the feature pyramid.
        checkpoint_activations: trade time for memory in the UNet's backward pass.
        source: the command that fetches the weights, for messages.
    """

    weights: str = "random"
    architecture: DiffusionArchitecture = field(default_factory=DiffusionArchitecture)
    timesteps: Sequence[int] = (0,)
    input_size: int = 512
    train_window: int = 512
    window_batch: int = 0
    channels: int = 512
    checkpoint_activations: bool = False
    source: str = ""


@dataclass(frozen=True)
class ClipSettings:
    """The shared CLIP model, see :func:`load_clip`; ``source`` as above."""

    weights: str = "random"
    source: str = ""
    architecture: CLIPArchitecture = field(default_factory=CLIPArchitecture)


@dataclass(frozen=True)
class CaptionerParts:
    """What a captioner may be made of."""

    models: DiffusionModels
    clip: FrozenCLIP
    uncond: torch.Tensor
    time_dim: int
    steps: int


@dataclass(frozen=True)
class HeadSettings:
    """Sizes of the pixel decoder and the mask decoder; the defaults are the published ones."""

    channels: int = 256
    mask_channels: int = 256
    embed_dim: int = 256
    pixel_feedforward: int = 1024
    pixel_layers: int = 6
    queries: int = 100
    layers: int = 9
    heads: int = 8
    feedforward: int = 2048


def implicit_captioner(learnable_time: bool = True) -> Callable[[CaptionerParts], nn.Module]:
    """The published captioner (section 3.3); ``learnable_time`` also conditions the time embedding."""

    def build(parts: CaptionerParts) -> nn.Module:
        time_dim = parts.time_dim if learnable_time else None
        return ImplicitCaptioner(parts.clip, parts.uncond, time_dim, parts.steps)

    return build


def empty_captioner() -> Callable[[CaptionerParts], nn.Module]:
    """The empty text for every image."""
    return lambda parts: EmptyCaptioner(parts.uncond)


def build_odise(
    backbone: BackboneSettings,
    clip: ClipSettings,
    captioner: Callable[[CaptionerParts], nn.Module],
    head: HeadSettings,
    classifier: ClassifierSettings,
    inference: InferenceSettings,
    supervision: str = "label",
    published_quirks: bool = False,
) -> Odise:
    """The network with its frozen weights loaded and its trainable weights fresh.

    Args:
        backbone, clip, head, classifier, inference: settings of the parts.
        captioner: makes the captioner, e.g. :func:`implicit_captioner`.
        supervision: ``label`` (a trainable no-object class) or ``caption`` (an object head).
        published_quirks: see :class:`Odise`.

    Raises:
        WeightsError: frozen weights are missing or do not fit.
        SettingError: a setting is out of range; the message names it.
    """
    if supervision not in SUPERVISION:
        raise SettingError(f"model.supervision={supervision}: choose one of {', '.join(SUPERVISION)}")
    check_timesteps(backbone.timesteps)
    frozen_clip = FrozenCLIP(load_clip(clip.weights, clip.architecture))
    caption = supervision == "caption"
    null = None if caption else frozen_clip.encode_text([""])
    return Odise(
        build_backbone(backbone, frozen_clip, captioner),
        PixelDecoder(
            backbone.channels,
            head.channels,
            head.mask_channels,
            head.pixel_feedforward,
            head.pixel_layers,
            head.heads,
        ),
        MaskDecoder(
            head.channels,
            head.mask_channels,
            head.embed_dim,
            head.queries,
            head.layers,
            head.heads,
            head.feedforward,
            object_head=caption,
        ),
        TextProjection(frozen_clip.embed_dim, head.embed_dim, null),
        frozen_clip,
        classifier,
        inference,
        published_quirks,
    )


def build_backbone(
    settings: BackboneSettings, clip: FrozenCLIP, captioner: Callable[[CaptionerParts], nn.Module]
) -> DiffusionBackbone:
    """The backbone with its frozen weights loaded."""
    models = load_diffusion(settings.weights, settings.architecture)
    features = LatentDiffusionFeatures(models, settings.timesteps, settings.checkpoint_activations)
    uncond = encode_prompts(models.text_encoder.eval(), [""], settings.architecture.text_pad)
    time_dim = 4 * models.unet.config["block_out_channels"][0]
    parts = CaptionerParts(models, clip, uncond, time_dim, len(features.timesteps))
    return DiffusionBackbone(
        features,
        captioner(parts),
        FeaturePyramid(features.taps, settings.channels),
        settings.input_size,
        settings.train_window,
        settings.window_batch,
    )
