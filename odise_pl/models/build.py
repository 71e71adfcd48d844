"""Putting the network together from settings: the one place that knows all its parts.

Loading weights is done here and only here, so a constructed module never touches a disk or a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from odise_pl.errors import SettingError
from odise_pl.models.backbones.captioners import EmptyCaptioner, ImplicitCaptioner, TextCaptioner
from odise_pl.models.backbones.clip import CLIPArchitecture, FrozenCLIP, load_clip
from odise_pl.models.backbones.feature_backbone import DiffusionBackbone
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.pyramid import FeaturePyramid
from odise_pl.models.backbones.sentences import NameRanking, PromptEncoder
from odise_pl.models.backbones.stable_diffusion import (
    DiffusionArchitecture,
    DiffusionModels,
    encode_prompts,
    load_diffusion,
)
from odise_pl.models.backbones.timesteps import check_timesteps, learns_time
from odise_pl.models.blip import load_blip
from odise_pl.models.classifiers import TextProjection
from odise_pl.models.heads.mask_decoder import MaskDecoder
from odise_pl.models.heads.pixel_decoder import PixelDecoder
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import ClassifierSettings, Odise
from odise_pl.vocabulary import load_vocabulary

SUPERVISION = ("label", "caption")


@dataclass(frozen=True)
class BackboneSettings:
    """The diffusion model and how it is read.

    Attributes:
        weights: see :func:`load_diffusion`.
        architecture: sizes, for ``random`` and single files.
        timesteps: diffusion steps whose features are used; ``learnable`` is step 0 with a time embedding that
            every captioner learns, whatever its own ``learnable_time`` says.
        input_size: side to which windows are resized.
        window: largest side of the windows that an image is cut into; None: its shorter side.
        window_batch: windows per forward pass, see :class:`DiffusionBackbone`; ``auto`` is set later, by who
            knows it.
        channels: width of the feature pyramid.
        checkpoint_activations: trade time for memory in the UNet's backward pass.
        source: the command that fetches the weights, for messages.
    """

    weights: str = "random"
    architecture: DiffusionArchitecture = field(default_factory=DiffusionArchitecture)
    timesteps: Sequence[int] | str = (0,)
    input_size: int = 512
    window: int | None = 512
    window_batch: int | str = 0
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
    """What a captioner may be made of.

    Attributes:
        models: the diffusion model; its text encoder is not kept by anything else.
        clip: the shared frozen CLIP.
        uncond: [1, 77, context_dim], the encoded empty text.
        time_dim: width of the time embedding.
        steps: number of diffusion steps that are read.
        text_pad: token that fills up a text.
        learns_time: whether the backbone's setting asks for a learned time embedding.
    """

    models: DiffusionModels
    clip: FrozenCLIP
    uncond: Tensor
    time_dim: int
    steps: int
    text_pad: int
    learns_time: bool

    def time(self, learnable: bool) -> int | None:
        """Width of the time embedding if it is learned, by the captioner's setting or the backbone's."""
        return self.time_dim if learnable or self.learns_time else None


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
    return lambda parts: ImplicitCaptioner(parts.clip, parts.uncond, parts.time(learnable_time), parts.steps)


def empty_captioner(learnable_time: bool = False) -> Callable[[CaptionerParts], nn.Module]:
    """The empty text for every image; ``learnable_time`` as in :func:`implicit_captioner`."""
    return lambda parts: EmptyCaptioner(parts.clip, parts.uncond, parts.time(learnable_time), parts.steps)


def heuristic_captioner(
    vocabulary: str | Sequence[Any] = "coco_panoptic",
    top: int = 5,
    template: str = "a photo of {}.",
    prompt: str = "a photo of a {}.",
    remember: int = 256,
    learnable_time: bool = False,
) -> Callable[[CaptionerParts], nn.Module]:
    """The names of a vocabulary that CLIP finds most like the image, see :class:`NameRanking`.

    Args:
        vocabulary: see :func:`load_vocabulary`; the main name of every class is ranked.
        top, template, prompt: see :class:`NameRanking`.
        remember: encoded sentences that are kept, see :class:`PromptEncoder`.
        learnable_time: as in :func:`implicit_captioner`.
    """

    def build(parts: CaptionerParts) -> nn.Module:
        ranking = NameRanking(parts.clip, load_vocabulary(vocabulary).names, top, template, prompt)
        return _text_captioner(parts, ranking, remember, learnable_time)

    return build


def blip_captioner(
    on_the_fly: bool = False,
    weights: str = "Salesforce/blip-image-captioning-base",
    max_tokens: int = 20,
    remember: int = 256,
    learnable_time: bool = False,
    source: str = "",
) -> Callable[[CaptionerParts], nn.Module]:
    """A caption by BLIP.

    Args:
        on_the_fly: False reads the caption of the whole image that ``python -m odise_pl.data.prepare
            captions`` wrote into the shards, for all of its windows, and BLIP is not loaded. True makes one
            for every window whenever it is seen.
        weights, max_tokens: see :func:`load_blip`; of captions on the fly.
        remember: encoded sentences that are kept, see :class:`PromptEncoder`.
        learnable_time: as in :func:`implicit_captioner`.
        source: the command that fetches the weights, for messages.
    """

    def build(parts: CaptionerParts) -> nn.Module:
        describe = load_blip(weights, max_tokens) if on_the_fly else None
        return _text_captioner(parts, describe, remember, learnable_time)

    return build


def _text_captioner(
    parts: CaptionerParts, describe: Callable[[Tensor], list[str]] | None, remember: int, learnable_time: bool
) -> TextCaptioner:
    encode = PromptEncoder(parts.models.text_encoder, parts.text_pad, remember)
    return TextCaptioner(parts.clip, describe, encode, parts.time(learnable_time), parts.steps)


def build_odise(
    backbone: BackboneSettings,
    clip: ClipSettings,
    captioner: Callable[[CaptionerParts], nn.Module],
    head: HeadSettings,
    classifier: ClassifierSettings,
    inference: InferenceSettings,
    supervision: str = "label",
    published_quirks: bool = False,
    mapped: bool = False,
) -> Odise:
    """The network with its frozen weights loaded and its trainable weights fresh.

    Args:
        backbone, clip, head, classifier, inference: settings of the parts.
        captioner: makes the captioner, e.g. :func:`implicit_captioner`.
        supervision: ``label`` (a trainable no-object class) or ``caption`` (an object head).
        published_quirks: see :class:`Odise`.
        mapped: leave the frozen weights of the image networks in their mapped files, where they take no
            memory, until ``distributed.sharding.place`` decides which of them this process holds.

    Raises:
        WeightsError: frozen weights are missing or do not fit.
        SettingError: a setting is out of range; the message names it.
    """
    if supervision not in SUPERVISION:
        raise SettingError(f"model.supervision={supervision}: choose one of {', '.join(SUPERVISION)}")
    check_timesteps(backbone.timesteps)
    frozen_clip = FrozenCLIP(load_clip(clip.weights, clip.architecture, mapped))
    caption = supervision == "caption"
    null = None if caption else frozen_clip.encode_text([""])
    network = Odise(
        build_backbone(backbone, frozen_clip, captioner, mapped),
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
    network.mapped = mapped
    return network


def build_backbone(
    settings: BackboneSettings,
    clip: FrozenCLIP,
    captioner: Callable[[CaptionerParts], nn.Module],
    mapped: bool = False,
) -> DiffusionBackbone:
    """The backbone with its frozen weights loaded; ``mapped`` as in :func:`build_odise`."""
    models = load_diffusion(settings.weights, settings.architecture, mapped)
    features = LatentDiffusionFeatures(models, settings.timesteps, settings.checkpoint_activations)
    uncond = encode_prompts(models.text_encoder.eval(), [""], settings.architecture.text_pad)
    time_dim = 4 * models.unet.config["block_out_channels"][0]
    parts = CaptionerParts(
        models,
        clip,
        uncond,
        time_dim,
        len(features.timesteps),
        settings.architecture.text_pad,
        learns_time(settings.timesteps),
    )
    return DiffusionBackbone(
        features,
        captioner(parts),
        FeaturePyramid(features.taps, settings.channels),
        settings.input_size,
        settings.window,
        0 if isinstance(settings.window_batch, str) else settings.window_batch,
    )
