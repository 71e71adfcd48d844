"""Class scores of mask embeddings: their similarity to the embedded names (ODISE, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cosine_logits(mask_embed: Tensor, text_embed: Tensor, scale: Tensor | float) -> Tensor:
    """Scaled cosine similarities: [B, Q, D] and [T, D] to [B, Q, T], in float32 or better."""
    # with a scale of up to 100, bfloat16 would round logits to multiples of 0.5
    with torch.autocast(mask_embed.device.type, enabled=False):
        masks, texts = (F.normalize(at_least_float32(x), dim=-1) for x in (mask_embed, text_embed))
        return scale * masks @ texts.T


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in its own precision or float32, whichever is better."""
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
        embed_dim: width of the mask embeddings; None: the texts stay as they are.
        null_embed: initial embedding of the trainable no-object class, [1, text_dim] (CLIP's embedding of the
            empty text); None for the caption model, whose decoder has an object head.
    """

    def __init__(
        self, text_dim: int = 768, embed_dim: int | None = 256, null_embed: Tensor | None = None
    ) -> None:
        super().__init__()
        self.proj = nn.Identity() if embed_dim is None else nn.Linear(text_dim, embed_dim)
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
