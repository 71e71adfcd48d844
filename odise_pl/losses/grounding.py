"""Grounding of a caption's words in masks, over the global batch (ODISE, section 3.4, equations 4 to 6).

Every word of every caption should find a mask of its own image that says what it means, better than masks of
the other images do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from odise_pl.losses.errors import DIVERGED, NonFiniteError
from odise_pl.structures import MaskPredictions

# Concatenates the batches of all ranks, rank by rank, and lets gradients flow back to each.
Gather = Callable[[Tensor], Tensor]


def gather_batch(x: Tensor) -> Tensor:
    """[B, ...] of every rank to [ranks * B, ...], with gradients; every rank has the same shape."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return x
    gathered: Tensor = _AllGather.apply(x)
    return gathered


class _AllGather(torch.autograd.Function):
    """The ranks' tensors behind one another; each gets back the sum of what all ranks say about its part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.chunk(distributed.get_world_size())[distributed.get_rank()]


def pair_similarity(mask_embed: Tensor, word_embed: Tensor, scale: Tensor) -> Tensor:
    """How well each caption fits each image: [B, C].

    Every word looks for its masks by a softmax over the scaled similarities, which then weights them; a
    caption's words count alike.

    Args:
        mask_embed: [B, Q, D].
        word_embed: [C, W, D], of C captions.
        scale: factor of the cosine.
    """
    masks, words = F.normalize(mask_embed, dim=-1), F.normalize(word_embed, dim=-1)
    similarity = scale * torch.einsum("bqd,cwd->bcqw", masks, words)
    return (similarity.softmax(2) * similarity).sum(2).mean(2)


def grounding_loss(
    mask_embed: Tensor, word_embed: Tensor, valid: Tensor, scale: Tensor, gather: Gather = gather_batch
) -> Tensor:
    """Cross-entropy from images to captions and from captions to images, halves of one loss.

    As published, the first is the mean over the images that have words, and the second the sum over the
    captions that have words divided by the number of all.

    Args:
        mask_embed: [B, Q, D], not normalised.
        word_embed: [B, W, D], words of the caption of each image, in the same space.
        valid: bool [B, W]; an image without any valid word is asked for nothing.
        scale: factor of the cosine.
        gather: see :func:`gather_batch`.

    Returns:
        a scalar, the same on every rank; its gradients, averaged over the ranks as data-parallel training
        does, are those of the global batch.
    """
    with torch.autocast(mask_embed.device.type, enabled=False):
        pairs = pair_similarity(gather(mask_embed.float()), gather(word_embed.float()), scale.float())
        asked = gather(valid.any(1).to(pairs.dtype))
        own = torch.arange(len(pairs), device=pairs.device)
        to_caption = F.cross_entropy(pairs, own, reduction="none") * asked
        to_image = F.cross_entropy(pairs.T, own, reduction="none") * asked
        return (to_caption.sum() / asked.sum().clamp(min=1) + to_image.mean()) / 2


class GroundingCriterion:
    """The grounding loss at every decoder output.

    Args:
        weight: of each output's loss in the total.
        gather: see :func:`gather_batch`.
    """

    def __init__(self, weight: float = 1.0, gather: Gather = gather_batch) -> None:
        self.weight, self.gather = weight, gather

    def __call__(
        self,
        outputs: Sequence[MaskPredictions],
        word_embed: Tensor,
        valid: Tensor,
        image_ids: Sequence[int],
    ) -> list[Tensor]:
        """Weighted losses of every output, in order.

        Args:
            outputs: the decoder's predictions.
            word_embed: [B, W, D], projected to the space of the mask embeddings.
            valid: bool [B, W], False for places without a word.
            image_ids: named in errors.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        losses = [
            self.weight
            * grounding_loss(output.mask_embed, word_embed, valid, output.logit_scale, self.gather)
            for output in outputs
        ]
        bad = [layer for layer, loss in enumerate(losses) if not loss.isfinite()]
        if bad:
            raise NonFiniteError(
                f"images {list(image_ids)}: grounding loss of decoder output {bad[0]} is NaN or infinite; "
                f"{DIVERGED}",
                losses,
            )
        return losses
