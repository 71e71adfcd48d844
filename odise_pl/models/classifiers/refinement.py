"""CLIP refines masks while it embeds them: relative mask attention (MaskCLIP, arXiv 2208.08984).

Throughout: B images, Q masks, P patches of CLIP's square input, whose side has S pixels; C is the width of
CLIP's image encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones.clip import FrozenCLIP, embed_patches
from odise_pl.models.classifiers.regions import visible_patches
from odise_pl.models.classifiers.text import at_least_float32
from odise_pl.models.heads.mask_decoder import DecoderOutput

_QUERIES = 25  # masks at once: each takes several tensors of P x C


class RelativeMaskAttention(nn.Module):
    """What a block of CLIP learns: a term of the masks in its attention, and a change of the masks.

    Args:
        width: of CLIP's image encoder.
        heads: of its attention.
        patch: side of its patches in pixels.
    """

    def __init__(self, width: int, heads: int, patch: int) -> None:
        super().__init__()
        self.heads, self.patch = heads, patch
        # both are convolutions of a patch in the paper
        self.embed, self.change = nn.Linear(patch**2, width), nn.Linear(width, patch**2)
        self.norm, self.key = nn.LayerNorm(width), nn.Linear(width, width, bias=False)
        self.activation = QuickGELU()
        for layer in (self.embed, self.change, self.key):
            nn.init.kaiming_normal_(layer.weight)
        for layer in (self.embed, self.change):
            nn.init.uniform_(layer.bias)

    def forward(self, queries: Tensor, keys: Tensor, patches: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Attention logits of the masks and refined masks, a few masks at a time.

        Args:
            queries: [B, Q, C], CLIP's, of the masks' class tokens.
            keys: [B, P, C], CLIP's, of the patches.
            patches: [B, P, C], their normed tokens.
            masks: [B, Q, S, S] logits.

        Returns:
            [B, heads, Q, P], scaled, and [B, Q, S, S].
        """
        own_keys, scale = self.key(patches), math.sqrt(self.heads / keys.shape[-1])
        logits, refined = [], []
        for some, pixels in zip(
            queries.split(_QUERIES, 1), split_patches(masks, self.patch).split(_QUERIES, 1), strict=True
        ):
            relative = self.norm(self.embed(pixels.tanh())) * own_keys[:, None]
            logits.append(scale * relative.unflatten(-1, (self.heads, -1)).sum(-1))
            change = self.change(self.activation(scale * some[:, :, None] * keys[:, None]))
            refined.append(join_patches(pixels + change, self.patch))
        return torch.cat(logits, 1).permute(0, 3, 1, 2), torch.cat(refined, 1)


class MaskRefinement(nn.Module):
    """One pass of the frozen CLIP over the image, with a class token for each mask, which some blocks refine.

    As in :meth:`FrozenCLIP.encode_masks`, a mask's token attends to the original class token and to patches
    with a pixel of the mask; blocks after a refinement see the refined mask. Only this module is trained.

    Args:
        blocks: numbers of the blocks that refine masks, from 1.
        width, heads, patch: see :class:`RelativeMaskAttention`.
    """

    def __init__(self, blocks: Sequence[int], width: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.blocks = nn.ModuleDict({str(n): RelativeMaskAttention(width, heads, patch) for n in blocks})

    def forward(self, clip: FrozenCLIP, images: Tensor, proposals: DecoderOutput) -> list[DecoderOutput]:
        """The masks after each refinement, [B, Q, S, S] of the whole canvas, all with the final embedding.

        As published, the whole canvas is squashed to CLIP's square, with its padding.

        Args:
            clip: the frozen CLIP.
            images: [B, 3, H, W] in 0..1.
            proposals: of the mask decoder.
        """
        size = (clip.image_size, clip.image_size)
        pixels = F.interpolate(images, size, mode="bicubic", align_corners=False)
        logits = at_least_float32(proposals.mask_logits)
        masks = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        embeddings, refined = self.attend(clip, clip.normalize(pixels), masks)
        own = {"mask_embed": embeddings, "pooled": embeddings, "logit_scale": clip.logit_scale}
        return [replace(proposals, mask_logits=one, **own) for one in refined]

    def attend(self, clip: FrozenCLIP, images: Tensor, masks: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeddings [B, Q, embed_dim], not normalised, and the masks after each refinement.

        Args:
            clip: the frozen CLIP.
            images: [B, 3, S, S], normalised.
            masks: [B, Q, S, S] logits.
        """
        visual, refined = clip.model.visual, []
        tokens = embed_patches(visual, images)
        x, hidden = tokens[:, :1].expand(-1, masks.shape[1], -1), self._hidden(masks)
        for number, block in enumerate(visual.transformer.resblocks, 1):
            memory = block.ln_1(tokens)
            queries, keys, values = _project(block.attn, block.ln_1(x), memory)
            bias = hidden
            if str(number) in self.blocks:
                relative, masks = self.blocks[str(number)](queries, keys[:, 1:], memory[:, 1:], masks)
                # the mean of both terms, but CLIP's alone for the class token
                bias = hidden + F.pad(relative / 2, (1, 0))
                keys = torch.cat([keys[:, :1], keys[:, 1:] / 2], dim=1)
                refined.append(masks)
                hidden = self._hidden(masks)
            x = x + block.ls_1(_attention(block.attn, queries, keys, values, bias))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
            tokens = block(tokens)
        return visual.ln_post(x) @ visual.proj, refined

    def _hidden(self, masks: Tensor) -> Tensor:
        """[B, 1, Q, 1 + P]: minus infinity for patches outside of the masks, else 0."""
        visible = F.pad(visible_patches(masks.detach(), self.patch), (1, 0), value=True)
        return masks.new_zeros(visible.shape).masked_fill(~visible, float("-inf"))[:, None]


def _project(attention: nn.MultiheadAttention, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of ``x``, keys and values of ``memory``."""
    layers = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    queries, keys, values = (F.linear(y, *of) for y, of in zip((x, memory, memory), layers, strict=True))
    return queries, keys, values


def _attention(
    attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor
) -> Tensor:
    """Attention with projected inputs [B, L, C] and a bias [B, heads or 1, Q, L]."""
    q, k, v = (y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for y in (queries, keys, values))
    found = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
    projected: Tensor = attention.out_proj(found.transpose(1, 2).flatten(2))
    return projected


def split_patches(masks: Tensor, patch: int) -> Tensor:
    """Pixels of each patch, row by row: [B, Q, S, S] to [B, Q, P, patch ** 2]."""
    return masks.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4).flatten(2, 3)


def join_patches(patches: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`split_patches`."""
    side = math.isqrt(patches.shape[2])
    grid = patches.unflatten(3, (patch, patch)).unflatten(2, (side, side)).transpose(3, 4)
    return grid.flatten(4).flatten(2, 3)


@dataclass(frozen=True)
class RefinementSettings:
    """Settings of :class:`MaskRefinement`.

    Attributes:
        blocks: of CLIP's image encoder that refine masks, from 1; None: the ends of its four quarters.
        no_object: what masks without an object are called in training.
    """

    blocks: Sequence[int] | None = None
    no_object: str = "other"

    def build(self, clip: FrozenCLIP) -> MaskRefinement:
        """The module for a ViT, with initial weights as published.

        Raises:
            SettingError: CLIP is no ViT, or has no such blocks.
        """
        if clip.convolutional:
            raise SettingError("model.refinement needs a CLIP that is a ViT: choose clip=vit_l14_336")
        layers = clip.model.visual.transformer.resblocks
        quarters = [-(-i * len(layers) // 4) for i in range(1, 5)]
        chosen = quarters if self.blocks is None else self.blocks
        blocks = sorted(set(chosen)) if isinstance(chosen, Sequence) else []
        if not blocks or not set(blocks) <= set(range(1, len(layers) + 1)):
            given = list(chosen) if isinstance(chosen, Sequence) else chosen
            raise SettingError(f"model.refinement.blocks={given}: list some in 1..{len(layers)}")
        if not isinstance(self.no_object, str):
            raise SettingError(f"model.refinement.no_object={self.no_object}: give a word")
        attention = layers[0].attn
        return MaskRefinement(blocks, attention.embed_dim, attention.num_heads, clip.patch_size)
