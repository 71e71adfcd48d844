"""Text encoders of diffusion models: texts to the context of the UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from odise_pl.models.backbones.tokens import VOCABULARY
from odise_pl.models.backbones.tokens import tokenize as byte_pairs
from odise_pl.models.frozen import Frozen

TOKENS = 77
END_OF_TEXT = VOCABULARY - 1


@dataclass(frozen=True)
class TextArchitecture:
    """Sizes of a text encoder; the defaults are OpenCLIP's bigG, the second one of SDXL.

    Attributes:
        width: of the encoder.
        mlp: width of its feed-forward nets.
        layers: number of its layers.
        heads: attention heads of each layer.
        activation: of the feed-forward nets.
        vocabulary: token embeddings, see :func:`~odise_pl.models.backbones.tokens.tokenizer`.
        pad: padding token.
    """

    width: int = 1280
    mlp: int = 5120
    layers: int = 32
    heads: int = 20
    activation: str = "gelu"
    vocabulary: int = VOCABULARY
    pad: int = 0

    def config(self) -> CLIPTextConfig:
        """For ``CLIPTextModel`` or ``CLIPTextModelWithProjection``."""
        return CLIPTextConfig(
            vocab_size=self.vocabulary,
            bos_token_id=self.vocabulary - 2,
            eos_token_id=self.vocabulary - 1,
            pad_token_id=self.pad,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            hidden_act=self.activation,
            max_position_embeddings=TOKENS,
            projection_dim=self.width,
        )


def tokenize(texts: Sequence[str], pad: int = END_OF_TEXT, vocabulary: int = VOCABULARY) -> Tensor:
    """CLIP byte-pair tokens, int64 [len(texts), 77]: start, text cut to 75 tokens, end, then ``pad``."""
    return byte_pairs(texts, vocabulary, TOKENS, pad)


@torch.no_grad()
def encode_prompts(text_encoder: CLIPTextModel, texts: Sequence[str], pad: int = END_OF_TEXT) -> Tensor:
    """Conditioning of the UNet for each text: [len(texts), 77, context_dim]."""
    output: Tensor = text_encoder(_tokens(text_encoder, texts, pad)).last_hidden_state
    return output


def _tokens(text_encoder: Any, texts: Sequence[str], pad: int) -> Tensor:
    device = next(text_encoder.parameters()).device
    return tokenize(texts, pad, text_encoder.config.vocab_size).to(device)


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


class PooledTextEncoder(Frozen):
    """Texts to the conditioning of SDXL, the pooled text as one more token.

    Args:
        first, second: the frozen text encoders.
        pads: their padding tokens.
    """

    def __init__(
        self, first: CLIPTextModel, second: CLIPTextModelWithProjection, pads: tuple[int, int]
    ) -> None:
        super().__init__()
        self.first, self.second, self.pads = first, second, pads
        self.freeze()

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """[len(texts), 78, context_dim]; zeros for the empty text, with which SDXL was trained.

        Tokens are the last layer but one of both encoders, side by side; the last token is the pooled text of
        the second, filled up with zeros.
        """
        first, second = (
            model(_tokens(model, texts, pad), output_hidden_states=True)
            for model, pad in zip((self.first, self.second), self.pads, strict=True)
        )
        words = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = F.pad(second.text_embeds, (0, words.shape[-1] - second.text_embeds.shape[-1]))
        has_words = torch.tensor([bool(text) for text in texts], device=words.device)
        return torch.cat([words, pooled[:, None]], dim=1) * has_words[:, None, None]
