"""The mask decoder: masked attention, and an open-vocabulary embedding for each mask.

Mask2Former (arXiv 2112.01527), section 3.2; ODISE, section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.models.heads.layers import MLP, ScaledEmbedding
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from odise_pl.models.ops.pooling import masked_mean
from odise_pl.models.ops.position import sine_positions
from odise_pl.structures import TensorStruct


@dataclass(frozen=True)
class DecoderOutput(TensorStruct):
    """One prediction of all queries.

    Attributes:
        mask_logits: [B, Q, H/4, W/4]; of dense heads [B, 0, h, w], the shape of their map.
        mask_embed: [B, Q, D] in the space of the text embeddings, not normalised; of dense heads
            [B, h * w, D], of the cells of the map.
        pooled: [B, Q, channels], each query plus the projected mean feature of its mask; MaskFormer's query;
            of dense heads [B, h * w, channels], the map.
        logit_scale: scalar, at most 100.
        object_logits: [B, Q, 2] (object, no object) of the caption model, else None.
        clip_map: [B, C, H/32, W/32], last map of a convolutional CLIP that is also the backbone, else None.
    """

    mask_logits: Tensor
    mask_embed: Tensor
    pooled: Tensor
    logit_scale: Tensor
    object_logits: Tensor | None = None
    clip_map: Tensor | None = None

    @classmethod
    def nameless(cls, mask_logits: Tensor, queries: Tensor) -> DecoderOutput:
        """Masks without embeddings of their own, for which the queries [B, Q, channels] stand."""
        return cls(mask_logits, queries, queries, queries.new_ones(()))


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and feed-forward net, each with residual and post-norm."""

    def __init__(self, channels: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.cross_norm = nn.LayerNorm(channels)
        self.self_attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.self_norm = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.feedforward_norm = nn.LayerNorm(channels)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, position: Tensor, hidden: Tensor
    ) -> Tensor:
        """One layer.

        Args:
            x: queries [B, Q, C].
            query_position: [Q, C].
            memory: [B, L, C].
            position: [L, C], of the memory.
            hidden: bool [B * heads, Q, L], True where a query must not attend.
        """
        query = x + query_position
        attended = self.cross_attention(
            query, memory + position, memory, attn_mask=hidden, need_weights=False
        )[0]
        x = self.cross_norm(x + attended)
        query = x + query_position
        x = self.self_norm(x + self.self_attention(query, query, x, need_weights=False)[0])
        return self.feedforward_norm(x + self.linear2(F.relu(self.linear1(x))))


class PooledMaskEmbedding(ScaledEmbedding):
    """Combines query and mean mask feature into an embedding in the space of the projected texts."""

    def __init__(self, channels: int, mask_channels: int, embed_dim: int, query_norm: bool = True) -> None:
        super().__init__()
        self.pool_norm = nn.LayerNorm(mask_channels)
        self.pool_proj = nn.Linear(mask_channels, channels)
        self.query_norm = nn.LayerNorm(channels) if query_norm else nn.Identity()
        self.query_mlp = MLP(channels, channels, embed_dim)
        self._add_scale()

    def forward(self, queries: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding [B, Q, embed_dim] and its input [B, Q, channels].

        Args:
            queries: [B, Q, channels].
            pooled: [B, Q, mask_channels], mean mask feature under each mask.
        """
        joined = queries + self.pool_proj(self.pool_norm(pooled))
        return self.query_mlp(self.query_norm(joined)), joined


class MaskDecoder(nn.Module):
    """Predicts masks ``layers + 1`` times: before the first layer and after each.

    Args:
        channels: width of queries and levels.
        mask_channels: width of the mask features.
        embed_dim: width of the mask embeddings; None: class-agnostic masks, for which the queries stand.
        queries: masks per image.
        layers: decoder layers; they attend to strides 32, 16, 8 in turn.
        heads: attention heads.
        feedforward: width of the feed-forward nets.
        object_head: also classify every query as object or not (the caption model).
        query_norm: normalise the sum of query and mask feature before their embedding.
    """

    def __init__(
        self,
        channels: int = 256,
        mask_channels: int = 256,
        embed_dim: int | None = 256,
        queries: int = 100,
        layers: int = 9,
        heads: int = 8,
        feedforward: int = 2048,
        object_head: bool = False,
        query_norm: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query_feat = nn.Embedding(queries, channels)
        self.query_embed = nn.Embedding(queries, channels)
        self.level_embed = nn.Embedding(3, channels)
        self.layers = nn.ModuleList(DecoderLayer(channels, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        self.mask_mlp = MLP(channels, channels, mask_channels)
        self.embedding = (
            None if embed_dim is None else PooledMaskEmbedding(channels, mask_channels, embed_dim, query_norm)
        )
        self.object_head = nn.Linear(channels, 2) if object_head else None

    def forward(self, features: PixelFeatures) -> list[DecoderOutput]:
        """All predictions, the final one last."""
        memories, positions = self._memories(features.levels)
        x = self.query_feat.weight.expand(len(features.mask_features), -1, -1)
        outputs = [self._predict(x, features.mask_features)]
        for i, layer in enumerate(self.layers):
            level = i % len(memories)
            hidden = self._hidden(outputs[-1].mask_logits, features.levels[level].shape[-2:])
            x = layer(x, self.query_embed.weight, memories[level], positions[level], hidden)
            outputs.append(self._predict(x, features.mask_features))
        return outputs

    def _memories(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        memories = [
            x.flatten(2).transpose(1, 2) + embed
            for x, embed in zip(levels, self.level_embed.weight, strict=True)
        ]
        positions = [
            sine_positions(x.shape[2], x.shape[3], x.shape[1], x.device).flatten(1).T for x in levels
        ]
        return memories, positions

    def _hidden(self, mask_logits: Tensor, size: torch.Size) -> Tensor:
        """Attention mask, bool [B * heads, Q, L]; a query with an empty mask attends everywhere."""
        hidden = self.hidden_cells(mask_logits.detach(), size).flatten(2)
        hidden &= ~hidden.all(dim=2, keepdim=True)
        return hidden.repeat_interleave(self.heads, dim=0)

    def hidden_cells(self, mask_logits: Tensor, size: torch.Size) -> Tensor:
        """Cells outside the mask, resized to a level: bool [B, Q, *size]."""
        resized = F.interpolate(mask_logits, tuple(size), mode="bilinear", align_corners=False)
        return resized.sigmoid() < 0.5

    def pooled_cells(self, mask_logits: Tensor) -> Tensor:
        """Cells inside the mask, whose features are pooled: bool, shaped as ``mask_logits``."""
        return mask_logits.sigmoid() > 0.5

    def _predict(self, x: Tensor, mask_features: Tensor) -> DecoderOutput:
        x = self.norm(x)
        mask_logits = torch.einsum("bqc,bchw->bqhw", self.mask_mlp(x), mask_features)
        if self.embedding is None:
            return DecoderOutput.nameless(mask_logits, x)
        pooled = masked_mean(mask_features, self.pooled_cells(mask_logits.detach()))
        objects = None if self.object_head is None else self.object_head(x)
        mask_embed, joined = self.embedding(x, pooled)
        return DecoderOutput(mask_logits, mask_embed, joined, self.embedding.scale, objects)
