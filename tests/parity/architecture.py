"""Sizes of the networks from the shapes of their weights.

Numbers of attention heads follow from widths, as in the published models and in the small one of the records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from odise_pl.models.backbones.clip import CLIPArchitecture
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture
from odise_pl.models.build import HeadSettings
from tests.parity.records import RecordError

POINTS, LEVELS = 4, 3  # of the pixel decoder's deformable attention
HEAD_WIDTH = 64  # of CLIP and of full-size text encoders
SMALL_HEAD_WIDTH = 16  # of the small text encoder

_UNET = "model.diffusion_model.input_blocks."
_VAE = "first_stage_model.encoder.down."
_TEXT = "cond_stage_model.transformer.text_model."


def diffusion_architecture(tensors: Mapping[str, Tensor]) -> DiffusionArchitecture:
    """Sizes of an original Stable Diffusion v1 checkpoint."""
    width = _shape(tensors, _TEXT + "embeddings.token_embedding.weight")[1]
    levels = range(_count(tensors, _VAE))
    return DiffusionArchitecture(
        unet_channels=_unet_channels(tensors),
        context_dim=_shape(tensors, _UNET + "1.1.transformer_blocks.0.attn2.to_k.weight")[1],
        vae_channels=[_shape(tensors, f"{_VAE}{i}.block.0.conv2.weight")[0] for i in levels],
        text_width=width,
        text_mlp=_shape(tensors, _TEXT + "encoder.layers.0.mlp.fc1.weight")[0],
        text_layers=_count(tensors, _TEXT + "encoder.layers."),
        text_heads=width // (HEAD_WIDTH if width >= 512 else SMALL_HEAD_WIDTH),
    )


def _unet_channels(tensors: Mapping[str, Tensor]) -> list[int]:
    """Width of the last residual block of every level."""
    channels, width = [], 0
    for i in range(_count(tensors, _UNET)):
        block = tensors.get(f"{_UNET}{i}.0.in_layers.2.weight")
        width = width if block is None else block.shape[0]
        if f"{_UNET}{i}.0.op.weight" in tensors:
            channels.append(width)
    return [*channels, width]


def clip_architecture(tensors: Mapping[str, Tensor]) -> CLIPArchitecture:
    """Sizes of a CLIP model with open_clip's names; QuickGELU as in OpenAI's models."""
    vision_width, _, _, patch = _shape(tensors, "visual.conv1.weight")
    places = _shape(tensors, "visual.positional_embedding")[0] - 1
    width, embed_dim = _shape(tensors, "text_projection")
    return CLIPArchitecture(
        image_size=round(places**0.5) * patch,
        patch_size=patch,
        vision_width=vision_width,
        vision_layers=_count(tensors, "visual.transformer.resblocks."),
        vision_head_width=HEAD_WIDTH,
        text_width=width,
        text_layers=_count(tensors, "transformer.resblocks."),
        text_heads=width // HEAD_WIDTH,
        embed_dim=embed_dim,
    )


def head_settings(state: Mapping[str, Tensor]) -> HeadSettings:
    """Sizes of the heads from trainable weights with our names."""
    queries, channels = _shape(state, "mask_decoder.query_feat.weight")
    offsets = _shape(state, "pixel_decoder.layers.0.attention.sampling_offsets.bias")[0]
    return HeadSettings(
        channels=channels,
        mask_channels=_shape(state, "pixel_decoder.mask_features.weight")[0],
        embed_dim=_shape(state, "text_projection.proj.weight")[0],
        pixel_feedforward=_shape(state, "pixel_decoder.layers.0.linear1.weight")[0],
        pixel_layers=_count(state, "pixel_decoder.layers."),
        queries=queries,
        layers=_count(state, "mask_decoder.layers."),
        heads=offsets // (2 * POINTS * LEVELS),
        feedforward=_shape(state, "mask_decoder.layers.0.linear1.weight")[0],
    )


def pyramid_channels(state: Mapping[str, Tensor]) -> int:
    """Width of the feature pyramid from trainable weights with our names."""
    return _shape(state, "pixel_decoder.input_proj.0.conv.weight")[1]


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise RecordError(f"the weights have no tensor {name}: they are truncated or of another model")
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of different indices after a prefix."""
    return len({m[1] for m in map(re.compile(re.escape(prefix) + r"(\d+)\.").match, tensors) if m})
