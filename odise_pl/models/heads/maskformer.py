"""The head of MaskFormer (arXiv 2107.06278): an FPN and a transformer decoder without masked attention.

Masks are named by their query alone, as in SimBaseline (arXiv 2112.14757) and ZegFormer (arXiv 2112.07910).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.models.heads.layers import MLP, ConvNorm, ScaledEmbedding
from odise_pl.models.heads.mask_decoder import DecoderOutput
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from odise_pl.models.ops.pooling import masked_mean
from odise_pl.models.ops.position import sine_positions


class TopDown(nn.Module):
    """The way from the coarsest map of a pyramid s2..s5 to the finest (FPN, arXiv 1612.03144).

    Args:
        in_channels: widths of s2, s3, s4, s5.
        channels: width of the result.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.top = ConvNorm(coarsest, channels, 3, relu=True)
        self.laterals = nn.ModuleList(ConvNorm(width, channels) for width in reversed(finer))
        self.smooth = nn.ModuleList(ConvNorm(channels, channels, 3, relu=True) for _ in finer)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """From s2, s3, s4, s5 to [B, channels, H/4, W/4]."""
        *finer, coarsest = pyramid
        x: Tensor = self.top(coarsest)
        for one, lateral, smooth in zip(reversed(finer), self.laterals, self.smooth, strict=True):
            x = smooth(lateral(one) + F.interpolate(x, one.shape[-2:]))
        return x


class FPN(nn.Module):
    """Converts the pyramid s2..s5 to :class:`PixelFeatures` with one level, of stride 32 (section 4.1).

    Args:
        in_channels: widths of s2, s3, s4, s5.
        channels: width of the decoder and of the level.
        mask_channels: width of the mask features.
        regions: also compute features of regions, see :class:`MaskFormerDecoder`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        mask_channels: int = 256,
        regions: bool = False,
    ) -> None:
        super().__init__()
        self.level = nn.Conv2d(in_channels[-1], channels, 1)
        self.top_down = TopDown(in_channels, channels)
        self.mask_features = nn.Conv2d(channels, mask_channels, 1)
        self.region_features = nn.Conv2d(channels, channels, 1) if regions else None
        for conv in filter(None, (self.level, self.mask_features, self.region_features)):
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, pyramid: Sequence[Tensor]) -> PixelFeatures:
        """Args: s2, s3, s4, s5, each [B, C, H/s, W/s] of its width C."""
        x = self.top_down(pyramid)
        regions = None if self.region_features is None else self.region_features(x)
        return PixelFeatures(self.mask_features(x), [self.level(pyramid[-1])], regions)


class QueryLayer(nn.TransformerDecoderLayer):
    """PyTorch's layer with positions in every attention (DETR, arXiv 2005.12872, appendix A.3)."""

    def forward(  # type: ignore[override]
        self, x: Tensor, query_position: Tensor, memory: Tensor, position: Tensor
    ) -> Tensor:
        """One layer.

        Args:
            x: queries [B, Q, C].
            query_position: [Q, C].
            memory: [B, L, C].
            position: [L, C], of the memory.
        """
        query = x + query_position
        x = self.norm1(x + self.dropout1(self.self_attn(query, query, x, need_weights=False)[0]))
        query, key = x + query_position, memory + position
        x = self.norm2(x + self.dropout2(self.multihead_attn(query, key, memory, need_weights=False)[0]))
        return self.norm3(x + self.dropout3(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class QueryEmbedding(ScaledEmbedding):
    """Maps queries or features of regions [B, Q, channels] into the space of the texts: [B, Q, embed_dim].

    Args:
        layers: linear layers; the hidden ones are four times as wide as the queries.
        logit_scale: fixed factor of cosine similarities, at most 100; None: it is trained.
    """

    def __init__(self, channels: int, embed_dim: int, layers: int, logit_scale: float | None) -> None:
        super().__init__()
        self.query_mlp = MLP(channels, 4 * channels, embed_dim, layers)
        self._add_scale(logit_scale)

    def forward(self, queries: Tensor) -> Tensor:
        embeddings: Tensor = self.query_mlp(queries)
        return embeddings


class MaskFormerDecoder(nn.Module):
    """Predicts masks after each layer (section 3.3, with DETR's decoder).

    Embeddings are of the queries; or of the mean features under the soft masks, if there are features of
    regions (OpenSeg, arXiv 2112.12143, section 3.1).

    Args:
        channels: width of queries and of the level.
        mask_channels: width of the mask features.
        embed_dim: width of the mask embeddings; None: class-agnostic masks, for which the queries stand.
        queries: masks per image.
        layers: decoder layers.
        heads: attention heads.
        feedforward: width of the feed-forward nets.
        dropout: in training.
        embed_layers, logit_scale: see :class:`QueryEmbedding`.
        object_head: also classify every query as object or not (the caption model).
    """

    def __init__(
        self,
        channels: int = 256,
        mask_channels: int = 256,
        embed_dim: int | None = 512,
        queries: int = 100,
        layers: int = 6,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
        embed_layers: int = 2,
        logit_scale: float | None = None,
        object_head: bool = False,
    ) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(queries, channels)
        self.layers = nn.ModuleList(
            QueryLayer(channels, heads, feedforward, dropout, batch_first=True) for _ in range(layers)
        )
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.norm = nn.LayerNorm(channels)
        self.mask_mlp = MLP(channels, channels, mask_channels)
        self.embedding = (
            None if embed_dim is None else QueryEmbedding(channels, embed_dim, embed_layers, logit_scale)
        )
        self.object_head = nn.Linear(channels, 2) if object_head else None

    def forward(self, features: PixelFeatures) -> list[DecoderOutput]:
        """All predictions, the final one last."""
        (level,) = features.levels
        memory, (channels, height, width) = level.flatten(2).transpose(1, 2), level.shape[1:]
        position = sine_positions(height, width, channels, level.device).flatten(1).T
        queries = self.query_embed.weight
        x = torch.zeros_like(queries).expand(len(level), -1, -1)
        outputs = []
        for layer in self.layers:
            x = layer(x, queries, memory, position)
            outputs.append(self._predict(self.norm(x), features))
        return outputs

    def _predict(self, x: Tensor, features: PixelFeatures) -> DecoderOutput:
        mask_logits = torch.einsum("bqc,bchw->bqhw", self.mask_mlp(x), features.mask_features)
        if self.embedding is None:
            return DecoderOutput.nameless(mask_logits, x)
        objects = None if self.object_head is None else self.object_head(x)
        if features.region_features is not None:
            x = masked_mean(features.region_features, mask_logits.float().sigmoid())
        return DecoderOutput(mask_logits, self.embedding(x), x, self.embedding.scale, objects)
