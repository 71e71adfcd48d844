"""How the small world's CLIP learns."""

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
from odise_pl.toyworld.corpus import Box, Corpus
from odise_pl.toyworld.pretraining import Batch, Schedule, pixels
from odise_pl.toyworld.regions import ENLARGED, WHOLE, around, enlarged, patches_of, regions_batch, tokens_of

PATCHES = 64  # of an image that CLIP is shown, a quarter
_DETAILS = 0.7  # share of images of one thing or kind of stuff that CLIP is shown


def clip_batch(corpus: Corpus, steps: int, size: int, random: np.random.Generator, number: int) -> Batch:
    """What CLIP learns from in one step; it differs with the thirds of ``steps``.

    * At first :func:`patches_batch` shows whole pictures and things, enlarged: names are learned quickly;
    * then most of its images are things and kinds of stuff, more than half as large as they are;
    * at last :func:`regions_batch` shows parts in their pictures, as masked CLIP sees them.
    """
    third = 3 * number // steps
    if third < 2:
        return patches_batch(corpus, third == 0, size, random)
    return regions_batch(corpus, size, random)


def patches_batch(corpus: Corpus, easy: bool, size: int, random: np.random.Generator) -> Batch:
    """``images`` [size, 3, SIDE, SIDE] in 0..1, ``patches`` [size, PATCHES] to look at, ``tokens`` of each.

    Some of the images are whole pictures, most of them details. Of details that are shown as large as they
    are in the picture, which are none if it is ``easy``, patches outside are not looked at.
    """
    pair = partial(_pair, corpus, random, easy)
    pairs = [pair(int(index)) for index in random.integers(len(corpus), size=size)]
    images, patches, captions = zip(*pairs, strict=True)
    return {"images": torch.stack(images), "patches": torch.stack(patches), "tokens": tokens_of(captions)}


def _pair(corpus: Corpus, random: np.random.Generator, easy: bool, index: int) -> tuple[Tensor, Tensor, str]:
    image = pixels([corpus.image(index)])
    details = [detail for detail in corpus.details[index] if detail.thing or not easy]
    if not details or random.random() >= _DETAILS:
        return image[0], _some_patches(WHOLE, random), pick(corpus.captions[index], random)
    detail = pick(details, random)
    box = around(detail.box, random)
    if easy or random.random() < ENLARGED:
        image, box = enlarged(image, box), WHOLE
    return image[0], _some_patches(box, random), pick(detail.captions, random)


def _some_patches(box: Box, random: np.random.Generator) -> Tensor:
    """Numbers of PATCHES patches in a box, each as often as any other or once more."""
    return torch.from_numpy(np.resize(random.permutation(patches_of(box)), PATCHES))


class ChosenPatches(nn.Module):
    """Takes the place of open_clip's patch dropout: which patches are looked at is said from outside."""

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
    """CLIP (arXiv 2103.00020), seeing a quarter of an image's patches (FLIP, arXiv 2212.00794) or regions.

    In the second third of the steps the text encoder stays as it is (LiT, arXiv 2111.07991): the image
    encoder needs more time.
    """

    def __init__(self, clip: Any, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule, self.loss = clip, schedule, ClipLoss()
        self.model.visual.patch_dropout = ChosenPatches()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The text encoder learns in all cycles of the schedule but the second."""
        learns = not 1 <= self.schedule.cycle(self.global_step) < 2
        for part in (self.model.transformer, self.model.token_embedding, self.model.ln_final):
            part.requires_grad_(learns)
        self.model.positional_embedding.requires_grad_(learns)
        self.model.text_projection.requires_grad_(learns)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Contrast of the pairs in the batch."""
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
        """The scale stays at most 100, as published."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))

    def configure_optimizers(self) -> Any:
        return self.schedule.configure(self.parameters())
