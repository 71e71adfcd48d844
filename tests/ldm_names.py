"""Tensors of diffusion networks by the names of original Stable Diffusion checkpoints."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from odise_pl.models.backbones.stable_diffusion import DiffusionModels

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "text_projection.weight": "text_projection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_tensors(models: DiffusionModels) -> dict[str, Tensor]:
    """All tensors of an original checkpoint: Stable Diffusion 1, a class-conditional model, or SDXL."""
    tensors = unet_tensors(models.unet) | vae_tensors(models.vae)
    if models.classes is not None:
        tensors["cond_stage_model.embedding.weight"] = models.classes.weight.detach()
    else:
        place = "cond_stage_model" if models.pooled_text_encoder is None else "conditioner.embedders.0"
        names = {n.removeprefix("text_model."): t for n, t in models.text_encoder.state_dict().items()}
        tensors |= {f"{place}.transformer.text_model.{n}": t for n, t in names.items()}
    if models.pooled_text_encoder is not None:
        tensors |= open_clip_tensors(models.pooled_text_encoder)
    return {name: value.contiguous() for name, value in tensors.items()}


def open_clip_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """``conditioner.embedders.1.model.*`` of SDXL's second text encoder."""
    tensors = {}
    found = encoder.state_dict()
    for name, value in found.items():
        place = name.removeprefix("text_model.")
        for own, original in _OPEN_CLIP.items():
            place = place.replace(own, original)
        if ".q_proj." in place:
            parts = [found[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            tensors[place.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in place and ".v_proj." not in place:
            tensors[place] = value.T if place == "text_projection" else value
    return {f"conditioner.embedders.1.model.{name}": value for name, value in tensors.items()}


def unet_tensors(unet: Any) -> dict[str, Tensor]:
    """``model.diffusion_model.*`` of a UNet."""
    fixed = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    for level, up in enumerate(unet.up_blocks):
        for i in range(2):
            place = f"input_blocks.{1 + 3 * level + i}"
            fixed[f"down_blocks.{level}.resnets.{i}"] = f"{place}.0"
            fixed[f"down_blocks.{level}.attentions.{i}"] = f"{place}.1"
        fixed[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{3 + 3 * level}.0.op"
        for i in range(3):
            place = f"output_blocks.{3 * level + i}"
            fixed[f"up_blocks.{level}.resnets.{i}"] = f"{place}.0"
            fixed[f"up_blocks.{level}.attentions.{i}"] = f"{place}.1"
        # after the attention, if the level has any
        place = f"output_blocks.{3 * level + 2}.{2 if hasattr(up, 'attentions') else 1}"
        fixed[f"up_blocks.{level}.upsamplers.0.conv"] = f"{place}.conv"
    return {
        f"model.diffusion_model.{_renamed(name, fixed, _RESNET)}": value
        for name, value in unet.state_dict().items()
    }


def vae_tensors(vae: Any) -> dict[str, Tensor]:
    """``first_stage_model.*`` of a VAE."""
    fixed = {}
    for half in ("encoder", "decoder"):
        fixed |= {f"{half}.mid_block.resnets.{i}": f"{half}.mid.block_{i + 1}" for i in range(2)}
        fixed[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
        fixed[f"{half}.conv_norm_out"] = f"{half}.norm_out"
    levels = len(vae.encoder.down_blocks)
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        fixed |= {f"encoder.down_blocks.{level}.resnets.{i}": f"{down}.block.{i}" for i in range(2)}
        fixed |= {f"decoder.up_blocks.{level}.resnets.{i}": f"{up}.block.{i}" for i in range(3)}
        fixed[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        fixed[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    tensors = {}
    for name, value in vae.state_dict().items():
        inner = _ATTENTION if ".attentions." in name else {"conv_shortcut": "nin_shortcut"}
        # original attention layers are 1x1 convolutions
        conv = inner is _ATTENTION and value.ndim == 2
        tensors[f"first_stage_model.{_renamed(name, fixed, inner)}"] = (
            value[..., None, None] if conv else value
        )
    return tensors


def _renamed(name: str, outer: dict[str, str], inner: dict[str, str]) -> str:
    prefix = next((old for old in outer if name.startswith(f"{old}.")), None)
    if prefix is None:
        return name
    rest = name[len(prefix) + 1 :]
    if re.search(r"resnets|mid_block.attentions", prefix):
        part = next((old for old in inner if rest.startswith(f"{old}.")), None)
        rest = rest if part is None else inner[part] + rest[len(part) :]
    return f"{outer[prefix]}.{rest}"
