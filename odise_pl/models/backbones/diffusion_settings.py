"""Settings of the diffusion backbone and its captioners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import CLIPTextModel

from odise_pl.models.backbones.captioners import Describe, EmptyCaptioner, ImplicitCaptioner, TextCaptioner
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.backbones.feature_backbone import DiffusionBackbone
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.pyramid import FeaturePyramid
from odise_pl.models.backbones.sentences import NameRanking, PromptEncoder
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, encode_prompts, load_diffusion
from odise_pl.models.backbones.timesteps import learns_time
from odise_pl.models.blip import load_blip
from odise_pl.vocabulary import load_vocabulary


@dataclass(frozen=True)
class CaptionerParts:
    """Parts of the backbone that captioners use.

    Attributes:
        clip: the shared frozen CLIP.
        text_encoder: of the diffusion model; only captioners keep it.
        text_pad: padding token.
        uncond: [1, 77, context_dim], the encoded empty text.
        time_dim: width of the time embedding.
        steps: number of diffusion steps.
        learns_time: whether the backbone's ``timesteps`` ask for a learned time embedding.
    """

    clip: FrozenCLIP
    text_encoder: CLIPTextModel
    text_pad: int
    uncond: Tensor
    time_dim: int
    steps: int
    learns_time: bool

    def time(self, learnable: bool) -> int | None:
        """Width of the time embedding if captioner or backbone want it learned, else None."""
        return self.time_dim if learnable or self.learns_time else None


MakeCaptioner = Callable[[CaptionerParts], nn.Module]


@dataclass(frozen=True)
class BackboneSettings:
    """Settings of the diffusion backbone.

    Attributes:
        weights: an original single file, a diffusers folder, a hub id, or ``random``.
        architecture: for ``random`` and single files, see :func:`load_diffusion`.
        timesteps: diffusion steps whose features are used; ``learnable`` is step 0 with a learned time
            embedding for every captioner, which overrides its ``learnable_time``.
        input_size: side in pixels to which windows are resized for the diffusion model.
        window: largest side of a window; None: the shorter side of the image.
        window_batch: see :class:`DiffusionBackbone`; earlier versions wrote ``auto`` into checkpoints.
        channels: width of the feature pyramid.
        checkpoint_activations: trade time for memory in the UNet's backward pass.
        source: download command of the weights, for messages.
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

    def build(self, clip: FrozenCLIP, captioner: MakeCaptioner, mapped: bool = False) -> DiffusionBackbone:
        """The backbone with its frozen weights loaded; ``mapped`` as in :func:`load_diffusion`."""
        models = load_diffusion(self.weights, self.architecture, mapped)
        features = LatentDiffusionFeatures(models, self.timesteps, self.checkpoint_activations)
        parts = CaptionerParts(
            clip,
            models.text_encoder,
            self.architecture.text_pad,
            uncond=encode_prompts(models.text_encoder.eval(), [""], self.architecture.text_pad),
            time_dim=4 * models.unet.config["block_out_channels"][0],
            steps=len(features.timesteps),
            learns_time=learns_time(self.timesteps),
        )
        return DiffusionBackbone(
            features,
            captioner(parts),
            FeaturePyramid(features.taps, self.channels),
            self.input_size,
            self.window,
            0 if isinstance(self.window_batch, str) else self.window_batch,
        )


def implicit_captioner(learnable_time: bool = True) -> MakeCaptioner:
    """The published captioner (section 3.3); ``learnable_time`` also learns a time embedding."""
    return lambda parts: ImplicitCaptioner(parts.clip, parts.uncond, parts.time(learnable_time), parts.steps)


def empty_captioner(learnable_time: bool = False) -> MakeCaptioner:
    """The empty text for every image; ``learnable_time`` as in :func:`implicit_captioner`."""
    return lambda parts: EmptyCaptioner(parts.clip, parts.uncond, parts.time(learnable_time), parts.steps)


def heuristic_captioner(
    vocabulary: str | Sequence[Any] = "coco_panoptic",
    top: int = 5,
    template: str = "a photo of {}.",
    prompt: str = "a photo of a {}.",
    remember: int = 256,
    learnable_time: bool = False,
) -> MakeCaptioner:
    """The names of a vocabulary that CLIP ranks highest for the image.

    Args:
        vocabulary: see :func:`load_vocabulary`; only main names are ranked.
        top, template, prompt: see :class:`NameRanking`.
        remember: number of cached sentences, see :class:`PromptEncoder`.
        learnable_time: as in :func:`implicit_captioner`.
    """

    def make(parts: CaptionerParts) -> nn.Module:
        ranking = NameRanking(parts.clip, load_vocabulary(vocabulary).names, top, template, prompt)
        return _text_captioner(parts, ranking, remember, learnable_time)

    return make


def blip_captioner(
    on_the_fly: bool = False,
    weights: str = "Salesforce/blip-image-captioning-base",
    max_tokens: int = 20,
    remember: int = 256,
    learnable_time: bool = False,
    source: str = "",
) -> MakeCaptioner:
    """BLIP captions.

    Args:
        on_the_fly: False uses the caption of the whole image that ``odise captions`` wrote into the
            shards, for all windows. True loads BLIP and captions every window.
        weights, max_tokens: see :func:`load_blip`; used on the fly only.
        remember: number of cached sentences, see :class:`PromptEncoder`.
        learnable_time: as in :func:`implicit_captioner`.
        source: download command of the weights, for messages.
    """

    def make(parts: CaptionerParts) -> nn.Module:
        describe = load_blip(weights, max_tokens) if on_the_fly else None
        return _text_captioner(parts, describe, remember, learnable_time)

    return make


def _text_captioner(
    parts: CaptionerParts, describe: Describe | None, remember: int, learnable_time: bool
) -> TextCaptioner:
    encode = PromptEncoder(parts.text_encoder, parts.text_pad, remember)
    return TextCaptioner(parts.clip, describe, encode, parts.time(learnable_time), parts.steps)
