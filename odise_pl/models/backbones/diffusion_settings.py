"""Settings of the latent diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from odise_pl.models.backbones.contract import Condition, Features
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, TextEncoder, load_diffusion
from odise_pl.models.backbones.timesteps import learns_time


@dataclass(frozen=True)
class BackboneSettings(FeatureSettings):
    """Settings of the latent diffusion model; checkpoints know it by this name.

    Attributes:
        weights: an original single file, a diffusers folder, a hub id, or ``random``.
        architecture: for ``random`` and single files, see :func:`load_diffusion`.
        timesteps: diffusion steps whose features are used; ``learnable`` is step 0 with a learned time
            embedding for every captioner, which overrides its ``learnable_time``.
        checkpoint_activations: trade time for memory in the UNet's backward pass.
    """

    weights: str = "random"
    architecture: DiffusionArchitecture = field(default_factory=DiffusionArchitecture)
    timesteps: Sequence[int] | str = (0,)
    checkpoint_activations: bool = False

    @property
    def conditioned(self) -> bool:
        """True."""
        return True

    def load(self, mapped: bool = False) -> tuple[Features, Condition | None]:
        """UNet and VAE, and the text encoder; ``mapped`` as in :func:`load_diffusion`."""
        models = load_diffusion(self.weights, self.architecture, mapped)
        features = LatentDiffusionFeatures(models, self.timesteps, self.checkpoint_activations)
        encode = TextEncoder(models.text_encoder, self.architecture.text_pad)
        return features, Condition(
            uncond=encode([""]),
            encode=encode,
            time_dim=4 * models.unet.config["block_out_channels"][0],
            steps=len(features.timesteps),
            learns_time=learns_time(self.timesteps),
        )
