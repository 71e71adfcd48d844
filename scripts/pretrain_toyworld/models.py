"""Architectures of the small world's frozen models, the same as in ``conf``."""

from __future__ import annotations

from pathlib import Path

import odise_pl
from odise_pl.models.backbones.clip import CLIPArchitecture
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture
from odise_pl.models.weights import WeightsError

VOCABULARY = 4096  # tokens: the words of the world take one to four
CLIP = CLIPArchitecture(
    image_size=128,
    patch_size=8,
    vision_width=128,
    vision_layers=4,
    vision_head_width=32,
    text_width=128,
    text_layers=3,
    text_heads=4,
    text_vocabulary=VOCABULARY,
    text_length=32,
    embed_dim=64,
)
DIFFUSION = DiffusionArchitecture(
    unet_channels=(32, 64, 128, 128),
    heads=2,
    context_dim=128,
    vae_channels=(16, 32, 64, 64),
    vae_groups=8,
    latent_channels=16,
    text_width=128,  # the text encoder is CLIP's
    text_mlp=512,
    text_layers=3,
    text_heads=4,
    text_vocabulary=VOCABULARY,
    text_pad=VOCABULARY - 1,
)
WEIGHTS = Path(odise_pl.__file__).with_name("toyworld") / "weights"  # those of the package
CLIP_FILE, DIFFUSION_FOLDER = "clip.safetensors", "diffusion"  # in a folder of weights


def require(weights: Path, *names: str) -> None:
    """Raise WeightsError if a folder of weights lacks one of these files or folders."""
    for name in names:
        if not (weights / name).exists():
            raise WeightsError(f"{weights / name} is missing; pretrain_toyworld makes it")
