"""Open-vocabulary class scores of masks, and their fusion with CLIP's (ODISE, sections 3.4 and 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cosine_logits(mask_embed: Tensor, text_embed: Tensor, scale: Tensor | float) -> Tensor:
    """Scaled cosine similarities: [B, Q, D] and [T, D] to [B, Q, T], in float32 or better."""
    # with a scale of up to 100, bfloat16 would round logits to multiples of 0.5
    with torch.autocast(mask_embed.device.type, enabled=False):
        masks, texts = (F.normalize(_at_least_float32(x), dim=-1) for x in (mask_embed, text_embed))
        return scale * masks @ texts.T


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def max_over_synonyms(logits: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
    """Maximum over each class's names: [..., T] with T = sum(counts) to [..., len(counts)]."""
    ends = torch.as_tensor(counts).cumsum(0)
    # not repeat_interleave, which ONNX cannot express with a known output size
    owner = (torch.arange(logits.shape[-1], device=ends.device)[:, None] >= ends).sum(1).to(logits.device)
    best = logits.new_full((*logits.shape[:-1], ends.shape[0]), float("-inf"))
    return best.scatter_reduce(-1, owner.expand_as(logits), logits, "amax")


class TextProjection(nn.Module):
    """Projects text embeddings into the space of the mask embeddings.

    Args:
        text_dim: width of CLIP's text embeddings.
        embed_dim: width of the mask embeddings.
        null_embed: initial embedding of the trainable no-object class, [1, text_dim] (CLIP's embedding of the
            empty text); None for the caption model, whose decoder has an object head.
    """

    def __init__(self, text_dim: int = 768, embed_dim: int = 256, null_embed: Tensor | None = None) -> None:
        super().__init__()
        self.proj = nn.Linear(text_dim, embed_dim)
        self.null_embed = None if null_embed is None else nn.Parameter(null_embed.detach().clone())

    def forward(
        self, mask_embed: Tensor, text: Tensor, counts: Sequence[int] | Tensor, scale: Tensor
    ) -> Tensor:
        """Class logits.

        Args:
            mask_embed: [B, Q, embed_dim].
            text: [sum(counts), text_dim], CLIP embeddings of all names, class by class.
            counts: number of names of each class.
            scale: factor of the cosine.

        Returns:
            [B, Q, K], or [B, Q, K + 1] with the no-object class last.
        """
        logits = max_over_synonyms(cosine_logits(mask_embed, self.proj(text), scale), counts)
        if self.null_embed is None:
            return logits
        return torch.cat([logits, cosine_logits(mask_embed, self.proj(self.null_embed), scale)], dim=-1)


def fuse(mask_logits: Tensor, clip_logits: Tensor, clip_share: Tensor) -> Tensor:
    """Geometric mean of two class distributions (equation 7 of the paper).

    Args:
        mask_logits: [..., K] from diffusion features.
        clip_logits: [..., K] from masked CLIP.
        clip_share: [K], exponent of CLIP's probability of each class.

    Returns:
        probabilities [..., K] that sum to 1.
    """
    log_p = mask_logits.log_softmax(-1) * (1 - clip_share) + clip_logits.log_softmax(-1) * clip_share
    return log_p.softmax(-1)


def with_no_object(probabilities: Tensor, no_object: Tensor) -> Tensor:
    """Joint logits ``log(p + 1e-8)`` of classes and no object.

    Args:
        probabilities: [..., K] conditional on an object.
        no_object: [..., 1], probability of no object.

    Returns:
        [..., K + 1], no object last.
    """
    joint = torch.cat([probabilities * (1 - no_object), no_object], dim=-1)
    return (joint + 1e-8).log()


def resize_to_square(maps: Tensor, view: tuple[float, float], size: int) -> Tensor:
    """Crop the top left part of maps and resize it (bilinear) to a square.

    Args:
        maps: [B, C, h, w].
        view: fraction of height and width to keep.
        size: side of the result.

    Returns:
        [B, C, size, size], in float32 or better.
    """
    maps = _at_least_float32(maps)  # coordinates take the precision of the maps
    if view == (1.0, 1.0):
        return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)
    high, wide = view
    # cell centres in the coordinates of grid_sample, -1..1 over the whole map
    centres = (torch.arange(size, device=maps.device, dtype=maps.dtype) + 0.5) / size
    y, x = torch.meshgrid(2 * high * centres - 1, 2 * wide * centres - 1, indexing="ij")
    grid = torch.stack([x, y], dim=-1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def visible_patches(mask_logits: Tensor, patch: int) -> Tensor:
    """Patches of CLIP's square input with a mask pixel: [B, Q, S, S] to bool [B, Q, (S / patch) ** 2]."""
    return (F.max_pool2d(mask_logits.sigmoid(), patch) >= 0.5).flatten(2)
