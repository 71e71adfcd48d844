"""Embedded names of classes, and their similarity to mask embeddings (ODISE, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.structures import TensorStruct


class TextEncoder(Protocol):
    """CLIP, or another network that embeds texts; ``mean``, of images' channels, is on its device."""

    mean: Tensor

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [len(texts), D], not normalised."""


@dataclass(frozen=True)
class TextClasses(TensorStruct):
    """Embedded names: ``embeddings`` [sum(counts), D] and the number of names of each class.

    The counts are a tensor [K] where they are an input of an exported graph.
    """

    embeddings: Tensor
    counts: tuple[int, ...] | Tensor


@dataclass(frozen=True)
class InferenceClasses(TensorStruct):
    """An embedded vocabulary for inference.

    Attributes:
        mask_text: names for the mask embeddings.
        clip_text: names for masked CLIP.
        clip_share: [K], exponent of CLIP's probabilities.
        isthing: one flag per class.
        seen: bool [K], whether a class shares a name with a training class; None in exported graphs.
    """

    mask_text: TextClasses
    clip_text: TextClasses
    clip_share: Tensor
    isthing: tuple[bool, ...]
    seen: Tensor | None = None


def embed_classes(
    clip: TextEncoder,
    labels: Sequence[Sequence[str]],
    prompt: str | Sequence[str] = "{}",
    mean: bool = False,
) -> TextClasses:
    """Embed every name of each class, in full precision.

    Args:
        clip: embeds texts.
        labels: names of each class.
        prompt: with ``{}`` for the name; of several, the mean of the normalised embeddings is returned.
        mean: return the mean of the normalised embeddings of a class's names instead of all of them.
    """
    counts = tuple(len(names) for names in labels)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts = [one.replace("{}", name) for one in prompts for names in labels for name in names]
    with torch.autocast(clip.mean.device.type, enabled=False):
        embeddings = clip.encode_text(texts)
        if not isinstance(prompt, str):
            embeddings = F.normalize(embeddings, dim=-1).unflatten(0, (len(prompts), -1)).mean(0)
        classes = TextClasses(embeddings, counts)
        return mean_of_names(classes) if mean else classes


def mean_of_names(classes: TextClasses) -> TextClasses:
    """The mean of the normalised embeddings of each class's names."""
    assert isinstance(classes.counts, tuple)
    of_classes = F.normalize(classes.embeddings, dim=-1).split(classes.counts)
    return TextClasses(torch.stack([names.mean(0) for names in of_classes]), (1,) * len(of_classes))


def cosine_logits(
    mask_embed: Tensor, text_embed: Tensor, scale: Tensor | float, normalised: bool = True
) -> Tensor:
    """Scaled cosine similarities: [B, Q, D] and [T, D] to [B, Q, T], in float32 or better.

    Unless ``normalised``, the masks' embeddings keep their length.
    """
    # with a scale of up to 100, bfloat16 would round logits to multiples of 0.5
    with torch.autocast(mask_embed.device.type, enabled=False):
        masks, texts = at_least_float32(mask_embed), F.normalize(at_least_float32(text_embed), dim=-1)
        return scale * (F.normalize(masks, dim=-1) if normalised else masks) @ texts.T


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
        cosine: of mask embeddings and texts; false: their dot product, with texts of unit length.
    """

    def __init__(
        self,
        text_dim: int = 768,
        embed_dim: int | None = 256,
        null_embed: Tensor | None = None,
        cosine: bool = True,
    ) -> None:
        super().__init__()
        self.cosine = cosine
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
            scale: factor of the similarities.

        Returns:
            [B, Q, K], or [B, Q, K + 1] with the no-object class last.
        """
        logits = max_over_synonyms(cosine_logits(mask_embed, self.proj(text), scale, self.cosine), counts)
        if self.null_embed is None:
            return logits
        return torch.cat([logits, cosine_logits(mask_embed, self.proj(self.null_embed), scale)], dim=-1)
