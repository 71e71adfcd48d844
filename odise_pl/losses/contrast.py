"""Contrastive losses between images and their texts over the global batch (GroupViT, arXiv 2202.11094)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.errors import check_number
from odise_pl.losses.errors import DIVERGED, NonFiniteError
from odise_pl.losses.grounding import gather_batch
from odise_pl.models.grouping import PairEmbeddings


def contrastive_loss(images: Tensor, texts: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """Mean of the cross-entropies from images to texts and from texts to images.

    An image has the same share in each of its texts; with one text per image this is InfoNCE.

    Args:
        images: [B, D], not normalised.
        texts: [B, T, D] of each image.
        valid: bool [B]; the texts of other images count for nothing.
        scale: factor of the cosine.

    Returns:
        a scalar, the same on every rank; gradients averaged over the ranks are those of the global batch.
    """
    with torch.autocast(images.device.type, enabled=False):
        images, texts = (gather_batch(F.normalize(x.float(), dim=-1)) for x in (images, texts))
        valid = gather_batch(valid.float()) > 0
        logits = scale.float() * torch.einsum("bd,ctd->bct", images, texts)
        never = torch.finfo(logits.dtype).min  # finite, so that gradients of a batch without texts are
        to_text = logits.masked_fill(~valid[:, None], never).flatten(1).log_softmax(1).view_as(logits)
        own = valid.nonzero()[:, 0]
        both = (to_text + logits.log_softmax(0))[own, own]
        return -both.sum() / 2 / max(1, both.numel())


@dataclass(frozen=True)
class ContrastLosses:
    """Weighted losses of captions and of their words."""

    captions: Tensor
    words: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.captions + self.words

    def named(self) -> dict[str, Tensor]:
        """Detached, by name."""
        return {name: loss.detach() for name, loss in vars(self).items()}


class ContrastCriterion:
    """The losses of captions and of prompts with their words.

    Args:
        words_weight: of the words' loss; that of the captions has weight 1.
    """

    def __init__(self, words_weight: float = 1.0) -> None:
        check_number("criterion.words_weight", words_weight, whole=False)
        self.words_weight = words_weight

    def __call__(self, pairs: PairEmbeddings, valid: Tensor, image_ids: Sequence[int]) -> ContrastLosses:
        """The losses of a batch.

        Args:
            pairs: embeddings.
            valid: bool [B], False for images without a caption.
            image_ids: named in errors.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        captions, words = (
            contrastive_loss(pairs.images, texts, valid, pairs.logit_scale)
            for texts in (pairs.captions, pairs.words)
        )
        losses = ContrastLosses(captions, self.words_weight * words)
        if not losses.total.isfinite():
            message = f"images {list(image_ids)}: the contrastive loss is NaN or infinite; {DIVERGED}"
            raise NonFiniteError(message, [losses])
        return losses
