"""Pre-training of the small world's CLIP."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.models.backbones.clip import MEAN, STD, embed_regions
from odise_pl.toyworld.captions import pick
from scripts.pretrain_toyworld.corpus import Box, Corpus
from scripts.pretrain_toyworld.regions import (
    ENLARGED,
    WHOLE,
    around,
    enlarged,
    patches_of,
    regions_batch,
    tokens_of,
)
from scripts.pretrain_toyworld.schedule import Batch, Schedule, pixels

PATCHES = 64  # visible ones of an image, a quarter
_DETAILS = 0.7  # share of images that show one thing or kind of stuff


def clip_batch(corpus: Corpus, steps: int, size: int, random: np.random.Generator, number: int) -> Batch:
    """The batch of one step. Each third of ``steps`` has its own kind:

    * :func:`patches_batch` of whole pictures and enlarged things, which teach names quickly;
    * :func:`patches_batch` of mostly things and stuff, more than half of them in their own size;
    * :func:`regions_batch` of parts within their pictures, as masked CLIP sees them.
    """
    third = 3 * number // steps
    if third < 2:
        return patches_batch(corpus, third == 0, size, random)
    return regions_batch(corpus, size, random)


def patches_batch(corpus: Corpus, easy: bool, size: int, random: np.random.Generator) -> Batch:
    """``images`` [size, 3, SIDE, SIDE] in 0..1, visible ``patches`` [size, PATCHES], and ``tokens`` of each.

    Some images are whole pictures, most are details. Details are enlarged, or, unless ``easy``, shown in
    their own size with only the patches inside visible.
    """
    pair = partial(_pair, corpus, random, easy)
    pairs = [pair(int(index)) for index in random.integers(len(corpus), size=size)]
    images, patches, captions = zip(*pairs, strict=True)
    return {"images": torch.stack(images), "patches": torch.stack(patches), "tokens": tokens_of(captions)}


def _pair(corpus: Corpus, random: np.random.Generator, easy: bool, index: int) -> tuple[Tensor, Tensor, str]:
    image = pixels([corpus.images[index]])
    details = [detail for detail in corpus.details[index] if detail.thing or not easy]
    if not details or random.random() >= _DETAILS:
        return image[0], _some_patches(WHOLE, random), pick(corpus.captions[index], random)
    detail = pick(details, random)
    box = around(detail.box, random)
    if easy or random.random() < ENLARGED:
        image, box = enlarged(image, box), WHOLE
    return image[0], _some_patches(box, random), pick(detail.captions, random)


def _some_patches(box: Box, random: np.random.Generator) -> Tensor:
    """PATCHES indices of patches in a box, repeated as evenly as possible."""
    return torch.from_numpy(np.resize(random.permutation(patches_of(box)), PATCHES))


class ChosenPatches(nn.Module):
    """In place of open_clip's patch dropout: the caller sets which patches are visible."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, 1 + patches, D] to [N, 1 + chosen, D]; the class token comes first."""
        if self.numbers is None:
            return tokens
        places = torch.cat([self.numbers.new_zeros(len(tokens), 1), self.numbers + 1], dim=1)
        return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


class ContrastiveModel(lightning.LightningModule):
    """Trains CLIP (arXiv 2103.00020) on a quarter of the patches (FLIP, arXiv 2212.00794) or on regions.

    The text encoder is frozen in the second third of the steps (LiT, arXiv 2111.07991), because the image
    encoder needs more time.
    """

    def __init__(self, clip: Any, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule, self.loss = clip, schedule, ClipLoss()
        self.model.visual.patch_dropout = ChosenPatches()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Freeze the text encoder in the second cycle of the schedule."""
        learns = not 1 <= self.schedule.cycle(self.global_step) < 2
        for part in (self.model.transformer, self.model.token_embedding, self.model.ln_final):
            part.requires_grad_(learns)
        self.model.positional_embedding.requires_grad_(learns)
        self.model.text_projection.requires_grad_(learns)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Contrastive loss of the pairs in the batch."""
        image = F.normalize(self._embed(batch), dim=-1)
        text = self.model.encode_text(batch["tokens"], normalize=True)
        scale = self.model.logit_scale.exp()
        with torch.no_grad():
            right = (image @ text.T).argmax(1) == torch.arange(len(image), device=image.device)
        loss: Tensor = self.loss(image, text, scale)
        self.log_dict({"contrast": loss, "right": right.float().mean(), "scale": scale}, prog_bar=True)
        return loss

    def _embed(self, batch: Batch) -> Tensor:
        """Embeddings of the images, then of their parts if there are any."""
        images = (batch["images"] - self.mean) / self.std
        self.model.visual.patch_dropout.numbers = batch.get("patches")
        if "patches" in batch:
            embeddings: Tensor = self.model.encode_image(images)
            return embeddings
        parts, whole = embed_regions(self.model.visual, images, batch["visible"])
        return torch.cat([whole[batch["captioned"]], parts[batch["visible"].any(2)]])

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Clamp the scale to 100, as published."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))

    def configure_optimizers(self) -> Any:
        return self.schedule.configure(self.parameters())
