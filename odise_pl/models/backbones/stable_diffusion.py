"""Building the frozen text-to-image diffusion model and loading its weights.

Weights come from an original single-file checkpoint (LDM names), a diffusers folder or a hub id, or are
``random`` for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as ldm
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from odise_pl.models.backbones.tokens import VOCABULARY
from odise_pl.models.backbones.tokens import tokenize as byte_pairs
from odise_pl.models.frozen import Frozen, copy_to_memory
from odise_pl.models.weights import (
    WeightsError,
    list_first,
    load_exactly,
    read_checkpoint,
    require_finite,
    tensors_of,
)

TOKENS = 77
_KINDS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
END_OF_TEXT = VOCABULARY - 1
_PARTS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")  # of an original file


@dataclass(frozen=True)
class DiffusionArchitecture:
    """Sizes of a Stable Diffusion model; the defaults are SD 1.x.

    Attributes:
        unet_channels: width of each UNet level; every level but the last has cross-attention.
        heads: attention heads of each level, or one number for all.
        context_dim: width of the text conditioning.
        linear_projection: projections around transformer blocks are linear (SD 2) or 1x1 convolutions (SD 1).
        vae_channels: width of each VAE level.
        vae_groups: groups of the VAE's GroupNorm; a divisor of every width.
        latent_channels: width of the latents.
        text_width: width of the text encoder.
        text_mlp: width of the text encoder's feed-forward nets.
        text_layers: layers of the text encoder (SD 2 uses the first 23 of 24: 23 here).
        text_heads: attention heads of the text encoder.
        text_activation: of the text encoder.
        text_vocabulary: token embeddings of the text encoder, see
            :func:`~odise_pl.models.backbones.tokens.tokenizer`.
        text_pad: padding token (SD 1: end of text; SD 2: 0).
        prediction: ``epsilon`` or ``v_prediction``, the UNet's output; features do not depend on it.
    """

    unet_channels: Sequence[int] = (320, 640, 1280, 1280)
    heads: int | Sequence[int] = 8
    context_dim: int = 768
    linear_projection: bool = False
    vae_channels: Sequence[int] = (128, 256, 512, 512)
    vae_groups: int = 32
    latent_channels: int = 4
    text_width: int = 768
    text_mlp: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    text_activation: str = "quick_gelu"
    text_vocabulary: int = VOCABULARY
    text_pad: int = END_OF_TEXT
    prediction: str = "epsilon"


@dataclass(frozen=True)
class DiffusionModels:
    """The three frozen networks of one diffusion model."""

    # Any: diffusers' classes declare neither submodules nor configuration
    unet: Any
    vae: Any
    text_encoder: CLIPTextModel


def build_diffusion(architecture: DiffusionArchitecture) -> DiffusionModels:
    """The networks with random weights."""
    return DiffusionModels(_unet(architecture), _vae(architecture), _text_encoder(architecture))


def load_diffusion(
    weights: str, architecture: DiffusionArchitecture | None = None, mapped: bool = False
) -> DiffusionModels:
    """Build the networks and load their weights.

    Args:
        weights: ``random``; a diffusers folder; an original ``.ckpt`` or ``.safetensors``; or a hub id.
        architecture: for ``random`` and single files, SD 1.x by default; folders and the hub have their own
            configuration.
        mapped: leave the weights of UNet and VAE in the mapped single file; see
            :func:`~odise_pl.models.build.build_odise`.

    Raises:
        WeightsError: weights are missing, damaged, or of another architecture.
    """
    architecture = architecture or DiffusionArchitecture()
    path = Path(weights)
    is_path = path.suffix in {".ckpt", ".safetensors", ".pth"} or weights.startswith((".", "/", "~"))
    if weights == "random":
        models = build_diffusion(architecture)
    elif path.is_file():
        models = _load_single_file(path, architecture, mapped)
    elif path.is_dir() or not is_path:
        models = DiffusionModels(**{name: load_network(name, weights, path.is_dir()) for name in _KINDS})
    else:
        raise WeightsError(
            f"no weights of a diffusion model at {weights}; give a file, a diffusers folder or a hub id"
        )
    _check_fit(models, weights)
    return models


def _check_fit(models: DiffusionModels, source: str) -> None:
    """Refuse inpainting models, SDXL and others, which load but would fail in the forward pass."""
    unet, vae, text = models.unet.config, models.vae.config, models.text_encoder.config
    for what, found, wanted in (
        ("the UNet's input channels", unet.in_channels, vae.latent_channels),
        ("the VAE's levels", len(vae.block_out_channels), 4),
        ("the width of the UNet's context", unet.cross_attention_dim, text.hidden_size),
    ):
        if found != wanted:
            raise WeightsError(
                f"{source}: {what} must be {wanted}, not {found}; use a text-to-image model of Stable "
                "Diffusion 1.x or 2.x, or set backbone.architecture to matching sizes"
            )


def _unet(a: DiffusionArchitecture) -> UNet2DConditionModel:
    levels = len(a.unet_channels)
    # diffusers' attention_head_dim means the number of heads in SD configurations
    heads = a.heads if isinstance(a.heads, int) else tuple(a.heads)
    return UNet2DConditionModel(
        in_channels=a.latent_channels,
        out_channels=a.latent_channels,
        block_out_channels=tuple(a.unet_channels),
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        layers_per_block=2,
        cross_attention_dim=a.context_dim,
        attention_head_dim=heads,
        use_linear_projection=a.linear_projection,
    )


def _vae(a: DiffusionArchitecture) -> AutoencoderKL:
    levels = len(a.vae_channels)
    return AutoencoderKL(
        block_out_channels=tuple(a.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        norm_num_groups=a.vae_groups,
        latent_channels=a.latent_channels,
        scaling_factor=0.18215,
    )


def _text_encoder(a: DiffusionArchitecture) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=a.text_vocabulary,
            bos_token_id=a.text_vocabulary - 2,
            eos_token_id=a.text_vocabulary - 1,
            pad_token_id=a.text_pad,
            hidden_size=a.text_width,
            intermediate_size=a.text_mlp,
            num_hidden_layers=a.text_layers,
            num_attention_heads=a.text_heads,
            hidden_act=a.text_activation,
            max_position_embeddings=TOKENS,
            projection_dim=a.text_width,
        )
    )


def load_network(name: str, source: str, local: bool = True) -> Any:
    """One network of a diffusers folder or hub repository, converted to float32.

    Args:
        name: ``unet``, ``vae`` or ``text_encoder``.
        source: the folder of all three, or a hub id.
        local: do not access the hub.

    Raises:
        WeightsError: weights are missing, damaged, or incomplete (the libraries would only warn).
    """
    kind: Any = _KINDS[name]
    # with its default, diffusers prints advice to install accelerate
    more = {} if kind is CLIPTextModel else {"low_cpu_mem_usage": False}
    try:
        network, report = kind.from_pretrained(
            source, subfolder=name, local_files_only=local, output_loading_info=True, **more
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{name} lacks {list_first('tensors', missing)}")
    except (OSError, ValueError, RuntimeError) as error:
        where = "folder" if local else "hub id"
        raise WeightsError(f"cannot load a diffusion model from the {where} {source}: {error}") from error
    require_finite(network.state_dict(), f"{source}/{name}")
    copy_to_memory(network.parameters())
    return network.float()


def _load_single_file(path: Path, architecture: DiffusionArchitecture, mapped: bool) -> DiffusionModels:
    tensors = tensors_of(read_checkpoint(path))
    for prefix in _PARTS:
        if not any(name.startswith(prefix) for name in tensors):
            raise WeightsError(f"{path} is not an original Stable Diffusion checkpoint: {prefix}* is missing")
    require_finite({name: t for name, t in tensors.items() if name.startswith(_PARTS)}, str(path))
    with torch.device("meta"):  # their weights are assigned
        unet, vae = _unet(architecture), _vae(architecture)
    text_encoder = _text_encoder(architecture)
    load_exactly(unet, ldm.convert_ldm_unet_checkpoint(dict(tensors), unet.config), str(path), assign=True)
    load_exactly(vae, ldm.convert_ldm_vae_checkpoint(dict(tensors), vae.config), str(path), assign=True)
    load_exactly(text_encoder, _convert_text(text_encoder, tensors), str(path), _TEXT_BUFFERS)
    if not mapped:
        copy_to_memory([*unet.parameters(), *vae.parameters()])
    return DiffusionModels(unet, vae, text_encoder)


_TEXT_BUFFERS = ("embeddings.position_ids", "text_model.embeddings.position_ids", "text_projection.weight")


def _convert_text(model: CLIPTextModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith("cond_stage_model.transformer.text_model") for name in tensors):
        named = ldm.convert_ldm_clip_checkpoint(dict(tensors))
    else:
        named = ldm.convert_open_clip_checkpoint(model, dict(tensors))
    # transformers dropped the "text_model." level in version 5
    nested = any(name.startswith("text_model.") for name in model.state_dict())
    return named if nested else {name.removeprefix("text_model."): value for name, value in named.items()}


def tokenize(texts: Sequence[str], pad: int = END_OF_TEXT, vocabulary: int = VOCABULARY) -> Tensor:
    """CLIP byte-pair tokens, int64 [len(texts), 77]: start, text cut to 75 tokens, end, then ``pad``."""
    return byte_pairs(texts, vocabulary, TOKENS, pad)


@torch.no_grad()
def encode_prompts(text_encoder: CLIPTextModel, texts: Sequence[str], pad: int = END_OF_TEXT) -> Tensor:
    """Conditioning of the UNet for each text: [len(texts), 77, context_dim]."""
    device = next(text_encoder.parameters()).device
    tokens = tokenize(texts, pad, text_encoder.config.vocab_size)
    output: Tensor = text_encoder(tokens.to(device)).last_hidden_state
    return output


class TextEncoder(Frozen):
    """Texts to the conditioning of the UNet.

    Args:
        model: the frozen text encoder.
        pad: padding token.
    """

    def __init__(self, model: CLIPTextModel, pad: int = END_OF_TEXT) -> None:
        super().__init__()
        self.model, self.pad = model, pad
        self.freeze()

    def forward(self, texts: Sequence[str]) -> Tensor:
        """[len(texts), 77, context_dim], see :func:`encode_prompts`."""
        return encode_prompts(self.model, texts, self.pad)
