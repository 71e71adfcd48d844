"""The networks of a latent diffusion model, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel, VQModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from odise_pl.models.backbones.text_encoders import END_OF_TEXT, TextArchitecture
from odise_pl.models.backbones.tokens import VOCABULARY

_TIME_WIDTH = 256  # of each of the six sizes in SDXL's time embedding


@dataclass(frozen=True)
class DiffusionArchitecture:
    """Sizes of a latent diffusion model; the defaults are Stable Diffusion 1.x.

    Attributes:
        unet_channels: width of each UNet level.
        transformer_layers: of each transformer of each UNet level; 0: the level has no cross-attention.
        heads: attention heads of each level, or one number for all.
        context_dim: width of the conditioning.
        linear_projection: projections around transformer blocks are linear (SD 2) or 1x1 convolutions (SD 1).
        vae_channels: width of each VAE level.
        vae_groups: groups of the VAE's GroupNorm; a divisor of every width.
        vae_codes: size of a vector-quantised VAE's codebook; 0: the VAE is a KL autoencoder.
        latent_channels: width of the latents.
        latent_scale: factor between the VAE's latents and the UNet's.
        betas: first and last beta of the noise schedule.
        classes: of a class-conditional model, which reads no text; 0: the conditioning is text.
        text_width: width of the text encoder.
        text_mlp: width of the text encoder's feed-forward nets.
        text_layers: layers of the text encoder (SD 2 uses the first 23 of 24: 23 here).
        text_heads: attention heads of the text encoder.
        text_activation: of the text encoder.
        text_vocabulary: token embeddings of the text encoder, see
            :func:`~odise_pl.models.backbones.tokens.tokenizer`.
        text_pad: padding token (SD 1: end of text; SD 2: 0).
        pooled_text: the second text encoder of SDXL, whose pooled text is part of the time embedding.
        prediction: ``epsilon`` or ``v_prediction``, the UNet's output; features do not depend on it.
    """

    unet_channels: Sequence[int] = (320, 640, 1280, 1280)
    transformer_layers: Sequence[int] = (1, 1, 1, 0)
    heads: int | Sequence[int] = 8
    context_dim: int = 768
    linear_projection: bool = False
    vae_channels: Sequence[int] = (128, 256, 512, 512)
    vae_groups: int = 32
    vae_codes: int = 0
    latent_channels: int = 4
    latent_scale: float = 0.18215
    betas: Sequence[float] = (0.00085, 0.012)
    classes: int = 0
    text_width: int = 768
    text_mlp: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    text_activation: str = "quick_gelu"
    text_vocabulary: int = VOCABULARY
    text_pad: int = END_OF_TEXT
    pooled_text: TextArchitecture | None = None
    prediction: str = "epsilon"

    def text(self) -> TextArchitecture:
        """The (first) text encoder."""
        sizes = (self.text_width, self.text_mlp, self.text_layers, self.text_heads)
        return TextArchitecture(*sizes, self.text_activation, self.text_vocabulary, self.text_pad)


@dataclass(frozen=True)
class DiffusionModels:
    """The frozen networks of one diffusion model.

    Attributes:
        unet, vae: of every model.
        text_encoder: None for a class-conditional model.
        pooled_text_encoder: of SDXL.
        classes: embeddings of a class-conditional model; the last row is "no class".
        betas: first and last beta of the noise schedule.
        learned_step: diffusion step that was trained together with a UNet for clean latents.
    """

    # Any: the libraries' classes declare neither submodules nor configuration
    unet: Any
    vae: Any
    text_encoder: Any = None
    pooled_text_encoder: Any = None
    classes: nn.Embedding | None = None
    betas: Sequence[float] = DiffusionArchitecture.betas
    learned_step: float | None = None


def build_diffusion(architecture: DiffusionArchitecture) -> DiffusionModels:
    """The networks with random weights."""
    a = architecture
    unet, vae = build_unet(a), build_vae(a)
    if a.classes:
        return DiffusionModels(unet, vae, classes=class_embedding(a), betas=a.betas)
    text = CLIPTextModel(a.text().config())
    pooled = None if a.pooled_text is None else CLIPTextModelWithProjection(a.pooled_text.config())
    return DiffusionModels(unet, vae, text, pooled, betas=a.betas)


def build_unet(a: DiffusionArchitecture) -> UNet2DConditionModel:
    """A UNet with random weights."""
    layers = a.transformer_layers
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _TIME_WIDTH,
        "projection_class_embeddings_input_dim": a.pooled_text.width + 6 * _TIME_WIDTH,
    } if a.pooled_text else {}  # fmt: skip
    return UNet2DConditionModel(
        in_channels=a.latent_channels,
        out_channels=a.latent_channels,
        block_out_channels=tuple(a.unet_channels),
        down_block_types=tuple("CrossAttnDownBlock2D" if n else "DownBlock2D" for n in layers),
        up_block_types=tuple("CrossAttnUpBlock2D" if n else "UpBlock2D" for n in reversed(layers)),
        layers_per_block=2,
        transformer_layers_per_block=tuple(n or 1 for n in layers),  # the last is also the middle's
        cross_attention_dim=a.context_dim,
        # diffusers' attention_head_dim means the number of heads in SD configurations
        attention_head_dim=a.heads if isinstance(a.heads, int) else tuple(a.heads),
        use_linear_projection=a.linear_projection,
        **added,
    )


def build_vae(a: DiffusionArchitecture) -> AutoencoderKL | VQModel:
    """A VAE with random weights."""
    levels = len(a.vae_channels)
    codes = {"num_vq_embeddings": a.vae_codes, "vq_embed_dim": a.latent_channels} if a.vae_codes else {}
    return (VQModel if a.vae_codes else AutoencoderKL)(
        block_out_channels=tuple(a.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        norm_num_groups=a.vae_groups,
        latent_channels=a.latent_channels,
        scaling_factor=a.latent_scale,
        **codes,
    )


def class_embedding(a: DiffusionArchitecture) -> nn.Embedding:
    """Random embeddings of the classes and of "no class"."""
    return nn.Embedding(a.classes + 1, a.context_dim)
