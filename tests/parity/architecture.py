"""Sizes of a network, read off the shapes of its weights.

What no shape tells (numbers of attention heads) follows the rules of the published models and of the small
model of the records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from odise_pl.models.backbones.clip import CLIPArchitecture
from odise_pl.models.backbones.stable_diffusion import END_OF_TEXT, DiffusionArchitecture
from odise_pl.models.build import HeadSettings
from tests.parity.records import RecordError

UNET_HEADS = 8
UNET_HEAD_WIDTH = 64  # of SD 2
POINTS, LEVELS = 4, 3  # of the pixel decoder's deformable attention
CLIP_HEAD_WIDTH = 64
_SMALL_TEXT_HEAD_WIDTH = 16  # the text encoder of the small model: 64 wide, 4 heads

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_TEXT = "cond_stage_model.transformer.text_model."
_OPEN_CLIP_TEXT = "cond_stage_model.model."


def diffusion_architecture(tensors: Mapping[str, Tensor]) -> DiffusionArchitecture:
    """Of an original Stable Diffusion checkpoint, by LDM names."""
    channels = _unet_channels(tensors)
    projection = _first(tensors, rf"{_UNET}.*\.proj_in\.weight")
    linear = projection.dim() == 2
    return DiffusionArchitecture(
        unet_channels=channels,
        heads=[c // UNET_HEAD_WIDTH for c in channels] if linear else UNET_HEADS,
        context_dim=_first(tensors, rf"{_UNET}.*\.attn2\.to_k\.weight").shape[1],
        linear_projection=linear,
        vae_channels=_levels(tensors, _VAE + r"encoder\.down\.(\d+)\.block\.0\.conv2\.weight"),
        **_text_sizes(tensors),
    )


def clip_architecture(tensors: Mapping[str, Tensor]) -> CLIPArchitecture:
    """Of a CLIP model with a vision transformer, by open_clip's names; with QuickGELU, as OpenAI's are."""
    patch = _first(tensors, r"visual\.conv1\.weight")
    places = _first(tensors, r"visual\.positional_embedding").shape[0] - 1
    width, embed_dim = _first(tensors, "text_projection").shape
    return CLIPArchitecture(
        image_size=round(places**0.5) * patch.shape[2],
        patch_size=patch.shape[2],
        vision_width=patch.shape[0],
        vision_layers=_count(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
        vision_head_width=CLIP_HEAD_WIDTH,
        text_width=width,
        text_layers=_count(tensors, r"transformer\.resblocks\.(\d+)\."),
        text_heads=width // CLIP_HEAD_WIDTH,
        embed_dim=embed_dim,
        text_vocabulary=_first(tensors, r"token_embedding\.weight").shape[0],
        text_length=_first(tensors, r"positional_embedding").shape[0],
    )


def head_settings(state: Mapping[str, Tensor]) -> HeadSettings:
    """Of our trainable weights, by our names."""
    offsets = _first(state, r"pixel_decoder\.layers\.0\.attention\.sampling_offsets\.bias")
    queries, channels = _first(state, r"mask_decoder\.query_feat\.weight").shape
    return HeadSettings(
        channels=channels,
        mask_channels=_first(state, r"pixel_decoder\.mask_features\.weight").shape[0],
        embed_dim=_first(state, r"text_projection\.proj\.weight").shape[0],
        pixel_feedforward=_first(state, r"pixel_decoder\.layers\.0\.linear1\.weight").shape[0],
        pixel_layers=_count(state, r"pixel_decoder\.layers\.(\d+)\."),
        queries=queries,
        layers=_count(state, r"mask_decoder\.layers\.(\d+)\."),
        heads=offsets.shape[0] // (2 * POINTS * LEVELS),
        feedforward=_first(state, r"mask_decoder\.layers\.0\.linear1\.weight").shape[0],
    )


def pyramid_channels(state: Mapping[str, Tensor]) -> int:
    """Width of the feature pyramid, of our trainable weights."""
    return _first(state, r"pixel_decoder\.input_proj\.0\.conv\.weight").shape[1]


def _unet_channels(tensors: Mapping[str, Tensor]) -> list[int]:
    blocks = _count(tensors, rf"{_UNET}input_blocks\.(\d+)\.")
    channels, width = [], 0
    for i in range(blocks):
        block = tensors.get(f"{_UNET}input_blocks.{i}.0.in_layers.2.weight")
        if block is not None:
            width = block.shape[0]
        if f"{_UNET}input_blocks.{i}.0.op.weight" in tensors:
            channels.append(width)
    return [*channels, width]


def _text_sizes(tensors: Mapping[str, Tensor]) -> dict:
    if any(name.startswith(_OPEN_CLIP_TEXT) for name in tensors):
        width = _first(tensors, rf"{_OPEN_CLIP_TEXT}token_embedding\.weight").shape[1]
        prefix = _OPEN_CLIP_TEXT + r"transformer\.resblocks\."
        # SD 2 reads the penultimate layer
        return {
            "text_width": width,
            "text_mlp": _first(tensors, prefix + r"0\.mlp\.c_fc\.weight").shape[0],
            "text_layers": _count(tensors, prefix + r"(\d+)\.") - 1,
            "text_heads": _text_heads(width),
            "text_activation": "gelu",
            "text_pad": 0,
            "prediction": "v_prediction",
        }
    width = _first(tensors, rf"{_TEXT}embeddings\.token_embedding\.weight").shape[1]
    return {
        "text_width": width,
        "text_mlp": _first(tensors, rf"{_TEXT}encoder\.layers\.0\.mlp\.fc1\.weight").shape[0],
        "text_layers": _count(tensors, rf"{_TEXT}encoder\.layers\.(\d+)\."),
        "text_heads": _text_heads(width),
        "text_pad": END_OF_TEXT,
    }


def _text_heads(width: int) -> int:
    return width // (CLIP_HEAD_WIDTH if width >= 512 else _SMALL_TEXT_HEAD_WIDTH)


def _first(tensors: Mapping[str, Tensor], pattern: str) -> Tensor:
    for name, tensor in tensors.items():
        if re.fullmatch(pattern, name):
            return tensor
    raise RecordError(f"the weights have no tensor {pattern}: they are cut off or of another model")


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    found = {int(m[1]) for m in map(re.compile(pattern).match, tensors) if m}
    return max(found, default=-1) + 1


def _levels(tensors: Mapping[str, Tensor], pattern: str) -> list[int]:
    found = {int(m[1]): tensors[m[0]].shape[0] for m in map(re.compile(pattern).fullmatch, tensors) if m}
    return [found[level] for level in sorted(found)]
