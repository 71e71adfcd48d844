"""Build the network from settings and load its frozen weights.

Configurations and checkpoints refer to the settings of all parts through this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from odise_pl.errors import SettingError, check_flag, check_number
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
from odise_pl.models.backbones.groupvit import GroupViTArchitecture, GroupViTSettings
from odise_pl.models.backbones.joint_features import JointSettings
from odise_pl.models.backbones.timm_features import TimmSettings
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.classifiers.generator import GeneratorSettings
from odise_pl.models.classifiers.refinement import RefinementSettings
from odise_pl.models.classifiers.text import TextProjection
from odise_pl.models.classifiers.word_vectors import WordVectors
from odise_pl.models.dense import DenseNetwork
from odise_pl.models.grouping import GroupingNetwork, GroupingSettings
from odise_pl.models.heads.settings import DenseSettings, HeadSettings, MaskFormerSettings
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.memory import keep_freed_memory
from odise_pl.models.odise import Odise

__all__ = [
    "BackboneSettings",
    "ClassifierSettings",
    "ClipFeatureSettings",
    "ClipSettings",
    "DenseSettings",
    "GeneratorSettings",
    "GroupViTArchitecture",
    "GroupViTSettings",
    "GroupingSettings",
    "HeadSettings",
    "JointSettings",
    "MaskFormerSettings",
    "RefinementSettings",
    "TimmSettings",
    "blip_captioner",
    "build_groupvit",
    "build_odise",
    "empty_captioner",
    "heuristic_captioner",
    "implicit_captioner",
    "none_captioner",
]

SUPERVISION = ("label", "caption", "mask", "words")


@dataclass(frozen=True)
class ClipSettings:
    """The shared CLIP model.

    Attributes:
        weights: a file with open_clip's names, or ``random``.
        source: the command that fetches the weights, for messages.
        architecture: of the weights.
        trained: train a convolutional image encoder, but not its head (OVRCOAT);
            ``optimizer.lr_scale={clip: 0.1}`` slows it down.
        prompt_tokens: trained embeddings in front of each text; see ``prompts=learned``.
    """

    weights: str = "random"
    source: str = ""
    trained: bool = False
    prompt_tokens: int = 0
    architecture: CLIPArchitecture = field(default_factory=CLIPArchitecture)

    def __post_init__(self) -> None:
        check_flag("clip.trained", self.trained)
        check_number("clip.prompt_tokens", self.prompt_tokens)


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
    method: str = "",
    refinement: RefinementSettings | None = None,
    generator: GeneratorSettings | None = None,
) -> Odise:
    """The network with its frozen weights loaded and untrained trainable weights.

    Args:
        backbone, clip, head, classifier, inference: settings of the parts.
        captioner: makes the captioner, e.g. :func:`implicit_captioner`.
        supervision: ``label`` (a trainable no-object class), ``caption`` (words, and an object head),
            ``words`` (without an object head) or ``mask`` (masks alone).
        published_quirks: see :class:`Odise`.
        method: the name of the preset, for reports.
        mapped: leave the frozen weights of the image networks in memory-mapped files until
            ``distributed.sharding.place`` decides which of them this process loads.
        refinement: of masks by CLIP, for supervision by ``mask``; None: masks stay as they are decoded.
        generator: of features, to which classifiers of pixels are fitted; None: pixels are compared with
            names.

    Raises:
        WeightsError: frozen weights are missing or do not fit.
        SettingError: a setting is out of range.
    """
    if supervision not in SUPERVISION:
        raise SettingError(f"model.supervision={supervision}: choose one of {', '.join(SUPERVISION)}")
    if not isinstance(backbone, FeatureSettings):
        raise SettingError("backbone=groupvit needs model=groupvit: choose method=groupvit")
    check_flag("model.published_quirks", published_quirks)
    keep_freed_memory()
    caption, nameless = supervision == "caption", supervision == "mask"
    if refinement is not None and not nameless:
        raise SettingError(f"model.refinement needs model.supervision=mask, not {supervision}")
    dense = isinstance(head, DenseSettings)
    if dense and supervision != "label":
        raise SettingError(f"model.supervision={supervision}: DenseSettings of model.head need label")
    if generator is not None and not dense:
        raise SettingError("model.generator: only DenseSettings of model.head have features of pixels")
    words = WordVectors(classifier.word_vectors) if classifier.word_vectors else None
    if words is not None and not dense:
        raise SettingError("fusion.word_vectors: only DenseSettings of model.head compare pixels with them")
    loaded = load_clip(clip.weights, clip.architecture, mapped)
    frozen_clip = FrozenCLIP(loaded, clip.trained, clip.prompt_tokens)
    refine = None if refinement is None else refinement.build(frozen_clip)
    _check_regions(frozen_clip, classifier)
    features = backbone.build(frozen_clip, captioner, mapped)
    text_dim = frozen_clip.embed_dim if words is None else sum(words.widths)
    parts = (
        features,
        head.pixel_decoder(features.pyramid.channels),
        head.mask_decoder(None if nameless else text_dim, object_head=caption),
        TextProjection(text_dim, head.embed_dim, None, head.cosine)
        if isinstance(head, DenseSettings)
        else _text_projection(frozen_clip, head, supervision, refinement),
        frozen_clip,
        classifier,
        inference,
        published_quirks,
    )
    if dense:
        make = None if generator is None else generator.build(text_dim, head.channels)
        network: Odise = DenseNetwork(*parts, words=words, generator=make)
    else:
        network = Odise(*parts, nameless or supervision == "words", refine)
    network.mapped = mapped
    return network


def build_groupvit(
    backbone: GroupViTSettings,
    classifier: ClassifierSettings,
    inference: GroupingSettings,
    captioner: MakeCaptioner | None = None,
    supervision: str = "text",
    method: str = "",
    mapped: bool = False,
) -> GroupingNetwork:
    """GroupViT with its weights loaded, all of which train.

    Args:
        backbone, classifier, inference: settings of the parts.
        captioner, supervision, method, mapped: what :func:`build_odise` takes; without effect.

    Raises:
        WeightsError: weights are missing or do not fit.
        SettingError: a setting is out of range.
    """
    if not isinstance(backbone, GroupViTSettings):
        raise SettingError("model=groupvit needs backbone=groupvit: choose method=groupvit")
    keep_freed_memory()
    return GroupingNetwork(backbone.load(), classifier, inference)


def _text_projection(
    clip: FrozenCLIP, head: HeadSettings, supervision: str, refinement: RefinementSettings | None
) -> TextProjection:
    """What masks are compared with in training; names of class-agnostic masks stay in CLIP's space."""
    if supervision == "mask":
        none = None if refinement is None else clip.encode_text([refinement.no_object])
        return TextProjection(clip.embed_dim, None, none).requires_grad_(False)
    none = None if supervision in ("caption", "words") else clip.encode_text([""])
    return TextProjection(clip.embed_dim, head.embed_dim, none)


def _check_regions(clip: FrozenCLIP, classifier: ClassifierSettings) -> None:
    regions, fitting = classifier.regions, "pooled" if clip.convolutional else "masked"
    if clip.trained and regions != "pooled":
        raise SettingError(f"fusion.regions={regions} does not train CLIP: clip.trained=true needs pooled")
    if regions not in (fitting, "cropped") and classifier.mode != "diffusion":
        kind = "convolutional network" if clip.convolutional else "ViT"
        raise SettingError(
            f"fusion.regions={regions} does not fit a CLIP that is a {kind}: choose {fitting} or cropped"
        )
