"""Build the network from settings and load its frozen weights.

Configurations and checkpoints refer to the settings of all parts through this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from odise_pl.errors import SettingError, check_number
from odise_pl.models.backbones.captioner_settings import (
    MakeCaptioner,
    blip_captioner,
    empty_captioner,
    heuristic_captioner,
    implicit_captioner,
    none_captioner,
)
from odise_pl.models.backbones.clip import CLIPArchitecture, FrozenCLIP, load_clip
from odise_pl.models.backbones.clip_features import ClipFeatureSettings
from odise_pl.models.backbones.diffusion_settings import BackboneSettings
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.joint_features import JointSettings
from odise_pl.models.backbones.timm_features import TimmSettings
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.classifiers.text import TextProjection
from odise_pl.models.heads.mask_decoder import MaskDecoder
from odise_pl.models.heads.maskformer import FPN, MaskFormerDecoder
from odise_pl.models.heads.pixel_decoder import PixelDecoder
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.memory import keep_freed_memory
from odise_pl.models.odise import Odise

__all__ = [
    "BackboneSettings",
    "ClassifierSettings",
    "ClipFeatureSettings",
    "ClipSettings",
    "HeadSettings",
    "JointSettings",
    "MaskFormerSettings",
    "TimmSettings",
    "blip_captioner",
    "build_odise",
    "empty_captioner",
    "heuristic_captioner",
    "implicit_captioner",
    "none_captioner",
]

SUPERVISION = ("label", "caption")


@dataclass(frozen=True)
class ClipSettings:
    """The shared CLIP model.

    Attributes:
        weights: a file with open_clip's names, or ``random``.
        source: the command that fetches the weights, for messages.
        architecture: of the weights.
    """

    weights: str = "random"
    source: str = ""
    architecture: CLIPArchitecture = field(default_factory=CLIPArchitecture)


@dataclass(frozen=True)
class HeadSettings:
    """Sizes of the pixel decoder and the mask decoder; the defaults are the published ones.

    Attributes:
        channels: width of both decoders.
        mask_channels: width of the mask features.
        embed_dim: width in which masks are compared with names; None: CLIP's, without a projection of names.
        pixel_feedforward: width of the pixel decoder's feed-forward nets.
        pixel_layers: layers of the pixel decoder.
        queries: masks per image.
        layers: layers of the mask decoder.
        heads: attention heads of both decoders.
        feedforward: width of the mask decoder's feed-forward nets.
    """

    channels: int = 256
    mask_channels: int = 256
    embed_dim: int | None = 256
    pixel_feedforward: int = 1024
    pixel_layers: int = 6
    queries: int = 100
    layers: int = 9
    heads: int = 8
    feedforward: int = 2048

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(HeadSettings)):
            if (value := getattr(self, name)) is not None:
                check_number(f"model.head.{name}", value, 1)
        if self.channels % 32 or self.channels % self.heads:
            raise SettingError(
                f"model.head.channels={self.channels} must be a multiple of 32 and of heads={self.heads}"
            )

    def pixel_decoder(self, in_channels: Sequence[int]) -> PixelDecoder | FPN:
        """The pixel decoder for a pyramid of ``in_channels``."""
        sizes = (self.channels, self.mask_channels, self.pixel_feedforward, self.pixel_layers, self.heads)
        return PixelDecoder(in_channels, *sizes)

    def mask_decoder(self, text_dim: int, object_head: bool) -> MaskDecoder | MaskFormerDecoder:
        """The mask decoder; ``text_dim`` is the width of CLIP, ``object_head`` is for the caption model."""
        widths = (self.channels, self.mask_channels, self.embed_dim or text_dim)
        return MaskDecoder(*widths, self.queries, self.layers, self.heads, self.feedforward, object_head)


@dataclass(frozen=True)
class MaskFormerSettings(HeadSettings):
    """Sizes of MaskFormer's head; its FPN has no layers, so settings that begin with ``pixel_`` are unused.

    Attributes:
        layers: of the mask decoder.
        dropout: of the mask decoder, in training.
        embed_layers: linear layers from a query to its embedding.
        logit_scale: fixed factor of cosine similarities, at most 100; None: it is trained.
    """

    layers: int = 6
    dropout: float = 0.1
    embed_layers: int = 2
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("model.head.dropout", self.dropout, 0, whole=False, most=1)
        check_number("model.head.embed_layers", self.embed_layers, 1)
        if self.logit_scale is not None:
            check_number("model.head.logit_scale", self.logit_scale, 1, whole=False, most=100)

    def pixel_decoder(self, in_channels: Sequence[int]) -> FPN:
        """See :meth:`HeadSettings.pixel_decoder`."""
        return FPN(in_channels, self.channels, self.mask_channels)

    def mask_decoder(self, text_dim: int, object_head: bool) -> MaskFormerDecoder:
        """See :meth:`HeadSettings.mask_decoder`."""
        widths = (self.channels, self.mask_channels, self.embed_dim or text_dim)
        sizes = (self.queries, self.layers, self.heads, self.feedforward)
        embedding = (self.embed_layers, self.logit_scale)
        return MaskFormerDecoder(*widths, *sizes, self.dropout, *embedding, object_head)


def build_odise(
    backbone: FeatureSettings,
    clip: ClipSettings,
    captioner: MakeCaptioner,
    head: HeadSettings,
    classifier: ClassifierSettings,
    inference: InferenceSettings,
    supervision: str = "label",
    published_quirks: bool = False,
    mapped: bool = False,
) -> Odise:
    """The network with its frozen weights loaded and untrained trainable weights.

    Args:
        backbone, clip, head, classifier, inference: settings of the parts.
        captioner: makes the captioner, e.g. :func:`implicit_captioner`.
        supervision: ``label`` (a trainable no-object class) or ``caption`` (an object head).
        published_quirks: see :class:`Odise`.
        mapped: leave the frozen weights of the image networks in memory-mapped files until
            ``distributed.sharding.place`` decides which of them this process loads.

    Raises:
        WeightsError: frozen weights are missing or do not fit.
        SettingError: a setting is out of range.
    """
    if supervision not in SUPERVISION:
        raise SettingError(f"model.supervision={supervision}: choose one of {', '.join(SUPERVISION)}")
    keep_freed_memory()
    caption = supervision == "caption"
    frozen_clip = FrozenCLIP(load_clip(clip.weights, clip.architecture, mapped))
    _check_regions(frozen_clip, classifier)
    null_embed = None if caption else frozen_clip.encode_text([""])
    features = backbone.build(frozen_clip, captioner, mapped)
    network = Odise(
        features,
        head.pixel_decoder(features.pyramid.channels),
        head.mask_decoder(frozen_clip.embed_dim, object_head=caption),
        TextProjection(frozen_clip.embed_dim, head.embed_dim, null_embed),
        frozen_clip,
        classifier,
        inference,
        published_quirks,
    )
    network.mapped = mapped
    return network


def _check_regions(clip: FrozenCLIP, classifier: ClassifierSettings) -> None:
    needed = {"masked": False, "pooled": True}.get(classifier.regions, clip.convolutional)
    if needed != clip.convolutional and classifier.mode != "diffusion":
        kind = "convolutional network" if clip.convolutional else "ViT"
        raise SettingError(f"fusion.regions={classifier.regions} does not fit a CLIP that is a {kind}")
