"""Grounding of a caption's words in masks, over the global batch (ODISE, section 3.4, equations 4 to 6).

Every word of every caption should find a mask of its own image that says what it means, better than masks of
the other images do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from odise_pl.losses.errors import DIVERGED, NonFiniteError
from odise_pl.structures import MaskPredictions


def gather_batch(x: Tensor) -> Tensor:
    """[B, ...] of every rank to [ranks * B, ...]; every rank has the same shape.

    For losses that every rank computes alike of the whole. Gradients flow to the rank's own part, as the sum
    of what all ranks say about it, which is the same.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    ranks = distributed.get_world_size()
    own = x.contiguous().clone()
    parts = [torch.empty_like(own) for _ in range(ranks)]
    distributed.all_gather(parts, own.detach())
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * ranks)
    parts[distributed.get_rank()] = own
    return torch.cat(parts)


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


def grounding_loss(mask_embed: Tensor, word_embed: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy from images to captions and from captions to images, halves of one loss.

    As published, the first is the mean over the images that have words, and the second the sum over the
    captions that have words divided by the number of all.

    Args:
        mask_embed: [B, Q, D], not normalised.
        word_embed: [B, W, D], words of the caption of each image, in the same space.
        valid: bool [B, W]; an image without any valid word is asked for nothing.
        scale: factor of the cosine.

    Returns:
        a scalar, the same on every rank; its gradients, averaged over the ranks as data-parallel training
        does, are those of the global batch.
    """
    with torch.autocast(mask_embed.device.type, enabled=False):
        masks, words = gather_batch(mask_embed.float()), gather_batch(word_embed.float())
        pairs = pair_similarity(masks, words, scale.float())
        asked = gather_batch(valid.any(1).to(pairs.dtype))
        own = torch.arange(len(pairs), device=pairs.device)
        to_caption = F.cross_entropy(pairs, own, reduction="none") * asked
        to_image = F.cross_entropy(pairs.T, own, reduction="none") * asked
        return (to_caption.sum() / asked.sum().clamp(min=1) + to_image.mean()) / 2


class GroundingCriterion:
    """The grounding loss at every decoder output.

    Args:
        weight: of each output's loss in the total.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(
        self, outputs: Sequence[MaskPredictions], word_embed: Tensor, valid: Tensor, image_ids: Sequence[int]
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
            self.weight * grounding_loss(output.mask_embed, word_embed, valid, output.logit_scale)
            for output in outputs
        ]
        bad = [layer for layer, loss in enumerate(losses) if not loss.isfinite()]
        if bad:
            raise NonFiniteError(
                f"images {list(image_ids)}: the grounding loss of decoder output {bad[0]} is NaN or "
                f"infinite; {DIVERGED}",
                losses,
            )
        return losses
