"""Whole models with random weights that run in a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import tiny_timm
import torch
from diffusers import VQModel
from safetensors.torch import save_file
from torch import nn

from odise_pl.models.backbones.captioner_settings import MakeCaptioner
from odise_pl.models.backbones.clip import CLIPArchitecture, FrozenCLIP, build_clip
from odise_pl.models.backbones.diffusion_weights import CLASSES
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, DiffusionModels, build_diffusion
from odise_pl.models.backbones.text_encoders import TextArchitecture
from odise_pl.models.build import (
    BackboneSettings,
    ClipFeatureSettings,
    ClipSettings,
    DenseSettings,
    GeneratorSettings,
    GroupViTArchitecture,
    GroupViTSettings,
    HeadSettings,
    RefinementSettings,
    TimmSettings,
    build_groupvit,
    build_odise,
    implicit_captioner,
)
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.grouping import GroupingNetwork, GroupingSettings
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import Odise
from odise_pl.vocabulary import Category, Vocabulary

_SIZES: dict[str, Any] = {
    "unet_channels": (32, 32, 64, 64),
    "context_dim": 32,
    "vae_channels": (32, 32, 64, 64),
    "text_width": 32,
    "text_mlp": 64,
    "text_layers": 1,
    "text_heads": 2,
}
# The generations of Stable Diffusion differ in heads per level and projections around transformers.
SD1 = DiffusionArchitecture(heads=4, **_SIZES)
SD2 = DiffusionArchitecture(
    heads=(1, 2, 4, 4),
    linear_projection=True,
    text_activation="gelu",
    text_pad=0,
    prediction="v_prediction",
    **_SIZES,
)
# class-conditional: one token, no cross-attention at the top level, a quantised VAE of three levels
LDM = DiffusionArchitecture(
    heads=1,
    transformer_layers=(0, 1, 1, 1),
    vae_codes=16,
    latent_channels=3,
    latent_scale=1.0,
    betas=(0.0015, 0.0195),
    classes=10,
    **_SIZES | {"vae_channels": (32, 32, 64)},
)
# three levels, transformers of different depth, two text encoders, pooled text
XL = DiffusionArchitecture(
    transformer_layers=(0, 1, 2),
    heads=(1, 2, 4),
    linear_projection=True,
    latent_scale=0.13025,
    pooled_text=TextArchitecture(64, 64, 2, 2),
    **_SIZES | {"unet_channels": (32, 64, 64), "context_dim": 96, "text_layers": 2},
)
CLIP = CLIPArchitecture(
    image_size=56,
    vision_width=64,
    vision_layers=2,
    vision_head_width=32,
    text_width=32,
    text_layers=1,
    text_heads=2,
    embed_dim=32,
)
CONV_CLIP = replace(CLIP, trunk="convnext_atto", image_size=64)
IMPLICIT = implicit_captioner()
HEAD = HeadSettings(
    channels=32,
    mask_channels=32,
    embed_dim=32,
    pixel_feedforward=64,
    pixel_layers=1,
    queries=10,
    layers=3,
    heads=4,
    feedforward=64,
)


def stir(module: nn.Module, seed: int = 0, size: float = 0.1) -> nn.Module:
    """Add noise to every parameter, so that none keeps an initial value of zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return module


@cache
def clip() -> FrozenCLIP:
    """A CLIP model of 4 x 4 patches, shared between tests: do not change it."""
    torch.manual_seed(1)
    return FrozenCLIP(build_clip(CLIP))


@cache
def diffusion(architecture: DiffusionArchitecture = SD1) -> DiffusionModels:
    """Diffusion networks for inputs of 64 pixels, shared between tests: do not change them."""
    torch.manual_seed(2)
    models = build_diffusion(architecture)
    for network in vars(models).values():
        if isinstance(network, nn.Module):
            network.eval().requires_grad_(False)
    return models


def save_diffusion(models: DiffusionModels, folder: Path) -> str:
    """Save the networks as a diffusers folder; returns its path."""
    quantised = isinstance(models.vae, VQModel)
    names = {"unet": "unet", "vae": "vqvae" if quantised else "vae", "text_encoder": "text_encoder",
             "pooled_text_encoder": "text_encoder_2"}  # fmt: skip
    for name, subfolder in names.items():
        if (network := getattr(models, name)) is not None:
            network.save_pretrained(folder / subfolder)
    if models.classes is not None:
        save_file(models.classes.state_dict(), folder / CLASSES)
    return str(folder)


def odise(
    supervision: str = "label",
    classifier: ClassifierSettings | None = None,
    inference: InferenceSettings | None = None,
    published_quirks: bool = False,
    mapped: bool = False,
    captioner: MakeCaptioner = IMPLICIT,
    family: str = "",
    refinement: RefinementSettings | None = None,
    **backbone: Any,
) -> Odise:
    """A new network with windows of 64 pixels; ``family`` is a key of ``tiny_timm.FAMILIES``."""
    torch.manual_seed(3)
    settings = {"input_size": 64, "window": 64, "channels": 128} | backbone
    own: FeatureSettings
    if family:
        name, options = tiny_timm.FAMILIES[family]
        captioner, own = None, TimmSettings(name, options=options, **settings)
    else:
        own = BackboneSettings(**{"architecture": SD1} | settings)
    model = build_odise(
        own,
        ClipSettings(architecture=CLIP),
        captioner,
        HEAD,
        classifier or ClassifierSettings(),
        inference or InferenceSettings(),
        supervision,
        published_quirks,
        mapped,
        refinement=refinement,
    )
    return model.eval()


def fc_clip(regions: str = "pooled") -> Odise:
    """A new network whose convolutional CLIP is backbone and classifier."""
    torch.manual_seed(3)
    model = build_odise(
        ClipFeatureSettings(window="whole", channels=None),
        ClipSettings(architecture=CONV_CLIP),
        None,
        replace(HEAD, embed_dim=None, query_norm=False),
        ClassifierSettings(regions=regions),
        InferenceSettings(),
    )
    return model.eval()


GROUPVIT = GroupViTArchitecture(
    image_size=32,
    width=32,
    heads=2,
    depths=(1, 1, 1),
    groups=(6, 3),
    text_width=16,
    text_layers=2,
    text_heads=2,
    text_vocabulary=1024,
    text_length=16,
    embed_dim=16,
    projection_width=32,
)


def grouping() -> GroupingNetwork:
    """A new GroupViT."""
    torch.manual_seed(3)
    settings = GroupingSettings(window=64, best_classes=3, background_threshold=0.3)
    own = GroupViTSettings(architecture=GROUPVIT)
    return build_groupvit(own, ClassifierSettings(mode="discriminative"), settings)


def dense(kind: str = "fpn", generator: GeneratorSettings | None = None, **head: Any) -> Odise:
    """A new network that names every pixel by itself."""
    torch.manual_seed(3)
    return build_odise(
        ClipFeatureSettings(window="whole", channels=None),
        ClipSettings(architecture=CONV_CLIP),
        None,
        DenseSettings(channels=64, embed_dim=None, kind=kind, **head),
        ClassifierSettings(mode="diffusion", regions="pooled"),
        InferenceSettings(),
        generator=generator,
    )


def vocabulary(*labels: tuple[str, ...], things: int = 1) -> Vocabulary:
    """Classes with their synonyms; the first ``things`` of them are things."""
    return Vocabulary(
        "tiny",
        tuple(Category(i, names[0], names[1:], isthing=i < things) for i, names in enumerate(labels)),
    )
