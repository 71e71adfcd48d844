"""Sizes of the networks: the published ones, and the small ones of the records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from odise_pl.models.backbones.clip import CLIPArchitecture
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture
from odise_pl.models.build import HeadSettings


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts; ``channels`` is the width of the feature pyramid."""

    diffusion: DiffusionArchitecture
    clip: CLIPArchitecture
    head: HeadSettings
    channels: int


PUBLISHED = Sizes(DiffusionArchitecture(), CLIPArchitecture(), HeadSettings(), 512)
SMALL = Sizes(
    DiffusionArchitecture(
        unet_channels=(32, 64, 128, 128),
        context_dim=64,
        vae_channels=(32, 64, 128, 128),
        text_width=64,
        text_mlp=128,
        text_layers=2,
        text_heads=4,
    ),
    CLIPArchitecture(
        image_size=112,
        vision_width=128,
        vision_layers=3,
        text_width=128,
        text_layers=2,
        text_heads=2,
        embed_dim=64,
    ),
    HeadSettings(
        channels=64,
        mask_channels=64,
        embed_dim=64,
        pixel_feedforward=128,
        pixel_layers=2,
        queries=20,
        layers=4,
        feedforward=128,
    ),
    channels=256,
)


def sizes_of(diffusion: Path) -> Sizes:
    """The sizes of a network by the file of its diffusion model: the small one has 34 MB."""
    return SMALL if diffusion.stat().st_size < 100e6 else PUBLISHED
