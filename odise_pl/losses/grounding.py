"""Contrastive loss between masks and caption words over the global batch (ODISE, section 3.4, eqs. 4 to 6).

The words of a caption should be more similar to masks of their own image than to masks of other images.
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

    For losses that all ranks compute identically from the whole batch. Only the rank's own part has a
    gradient: the sum over all ranks, which is ``ranks`` times its own.
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
    """Similarity of each image and each caption: [B, C].

    For each word, the scaled cosine similarities to the masks, weighted by their softmax; then the mean over
    the caption's words.

    Args:
        mask_embed: [B, Q, D].
        word_embed: [C, W, D], of C captions.
        scale: factor of the cosine.
    """
    masks, words = F.normalize(mask_embed, dim=-1), F.normalize(word_embed, dim=-1)
    similarity = scale * torch.einsum("bqd,cwd->bcqw", masks, words)
    return (similarity.softmax(2) * similarity).sum(2).mean(2)


def grounding_loss(mask_embed: Tensor, word_embed: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """Mean of the cross-entropies from images to captions and from captions to images.

    As published, the first is averaged over the images that have words; the second is summed over the
    captions that have words and divided by the number of all captions.

    Args:
        mask_embed: [B, Q, D], not normalised.
        word_embed: [B, W, D], words of the caption of each image, in the same space.
        valid: bool [B, W]; an image without a valid word contributes no loss.
        scale: factor of the cosine.

    Returns:
        a scalar, the same on every rank; gradients averaged over the ranks are those of the global batch.
    """
    with torch.autocast(mask_embed.device.type, enabled=False):
        masks, words = gather_batch(mask_embed.float()), gather_batch(word_embed.float())
        pairs = pair_similarity(masks, words, scale.float())
        has_words = gather_batch(valid.any(1).to(pairs.dtype))
        own = torch.arange(len(pairs), device=pairs.device)
        to_caption = F.cross_entropy(pairs, own, reduction="none") * has_words
        to_image = F.cross_entropy(pairs.T, own, reduction="none") * has_words
        return (to_caption.sum() / has_words.sum().clamp(min=1) + to_image.mean()) / 2


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
            valid: bool [B, W], False for padding.
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
