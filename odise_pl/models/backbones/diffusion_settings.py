"""Settings of the latent diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from odise_pl.errors import check_flag
from odise_pl.models.backbones.contract import ConditioningSpec, Features
from odise_pl.models.backbones.diffusion_weights import load_diffusion
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, DiffusionModels
from odise_pl.models.backbones.text_encoders import PooledTextEncoder, TextEncoder
from odise_pl.models.backbones.timesteps import learns_time


@dataclass(frozen=True)
class BackboneSettings(FeatureSettings):
    """Settings of the latent diffusion model; checkpoints know it by this name.

    Attributes:
        weights: an original single file, a diffusers folder, a hub id, or ``random``.
        architecture: for ``random`` and single files, see :func:`load_diffusion`.
        timesteps: diffusion steps whose features are used; ``learnable`` is step 0 with a learned time
            embedding for every captioner, which overrides its ``learnable_time``. A step that ``unet`` has
            learned replaces them.
        checkpoint_activations: trade time for memory in the UNet's backward pass.
        unet: a file with other weights of the UNet, by diffusers' names; None: those of ``weights``.
        noise: see :class:`LatentDiffusionFeatures`.
    """

    weights: str = "random"
    architecture: DiffusionArchitecture = field(default_factory=DiffusionArchitecture)
    timesteps: Sequence[int] | str = (0,)
    checkpoint_activations: bool = False
    unet: str | None = None
    noise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("backbone.noise", self.noise)
        check_flag("backbone.checkpoint_activations", self.checkpoint_activations)

    @property
    def conditioned(self) -> bool:
        """True."""
        return True

    def load(self, mapped: bool = False) -> tuple[Features, ConditioningSpec | None]:
        """UNet and VAE, and the text encoder; ``mapped`` as in :func:`load_diffusion`."""
        models = load_diffusion(self.weights, self.architecture, mapped, self.unet)
        features = LatentDiffusionFeatures(models, self.timesteps, self.checkpoint_activations, self.noise)
        uncond, encode = self._conditioning(models)
        return features, ConditioningSpec(
            uncond=uncond,
            encode=encode,
            time_dim=4 * models.unet.config["block_out_channels"][0],
            steps=len(features.timesteps),
            learns_time=learns_time(self.timesteps),
        )

    def _conditioning(self, models: DiffusionModels) -> tuple[Tensor, nn.Module | None]:
        """The context of "no class" and None, or that of the empty text and the text encoder."""
        pad, second = self.architecture.text_pad, self.architecture.pooled_text
        if models.classes is not None:
            return models.classes.weight[None, -1:], None
        encode: nn.Module = TextEncoder(models.text_encoder, pad)
        if second is not None:
            encode = PooledTextEncoder(models.text_encoder, models.pooled_text_encoder, (pad, second.pad))
        return encode([""]), encode
