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

from odise_pl.backbones.clip import MEAN, STD
from odise_pl.backbones.tokens import tokenize as byte_pairs
from odise_pl.toyworld.captions import pick
from odise_pl.toyworld.corpus import SIDE, Box, Corpus
from odise_pl.toyworld.pretraining import Batch, Schedule, pixels
from odise_pl.toyworld.sizes import CLIP, VOCABULARY

PATCHES = 64  # of an image that CLIP is shown, a quarter
_DETAILS = 0.7  # share of images of one thing or kind of stuff that CLIP is shown, ...
_ENLARGED = 0.4  # ... and of those among them that fill the image, in the second half
_SURROUNDINGS = 0.4  # the most that is seen on each side of a thing, of its size


def clip_batch(corpus: Corpus, steps: int, size: int, random: np.random.Generator, number: int) -> Batch:
    """``images`` [size, 3, SIDE, SIDE] in 0..1, ``patches`` [size, PATCHES] to look at, ``tokens`` of each.

    Some of the images are whole pictures, most of them details. In the first half of ``steps`` batches these
    are things, enlarged, so that names are learned quickly; then things and stuff, more than half of them as
    large as they are in the picture, of which patches outside are not looked at: what masked CLIP sees.
    """
    pair = partial(_pair, corpus, random, number < steps / 2)
    pairs = [pair(int(index)) for index in random.integers(len(corpus), size=size)]
    images, patches, captions = zip(*pairs, strict=True)
    tokens = byte_pairs(captions, VOCABULARY, CLIP.text_length)
    return {"images": torch.stack(images), "patches": torch.stack(patches), "tokens": tokens}


def _pair(corpus: Corpus, random: np.random.Generator, easy: bool, index: int) -> tuple[Tensor, Tensor, str]:
    image = pixels([corpus.image(index)])
    details = [detail for detail in corpus.details[index] if detail.thing or not easy]
    whole = (0, 0, SIDE, SIDE)
    if not details or random.random() >= _DETAILS:
        return image[0], _some_patches(whole, random), pick(corpus.captions[index], random)
    detail = pick(details, random)
    left, top, right, bottom = box = _around(detail.box, random)
    if easy or random.random() < _ENLARGED:
        cut, box = image[..., top:bottom, left:right], whole
        image = F.interpolate(cut, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return image[0], _some_patches(box, random), pick(detail.captions, random)


def _around(box: Box, random: np.random.Generator) -> Box:
    left, top, right, bottom = box
    x, y = (round(side * random.uniform(0, _SURROUNDINGS)) for side in (right - left, bottom - top))
    return max(0, left - x), max(0, top - y), min(SIDE, right + x + 1), min(SIDE, bottom + y + 1)


def _some_patches(box: Box, random: np.random.Generator) -> Tensor:
    """Numbers of PATCHES patches in a box, each as often as any other or once more."""
    size = CLIP.patch_size
    left, top, right, bottom = box[0] // size, box[1] // size, -(-box[2] // size), -(-box[3] // size)
    numbers = (SIDE // size * np.arange(top, bottom)[:, None] + np.arange(left, right)).ravel()
    chosen = np.resize(random.permutation(numbers), PATCHES)
    return torch.from_numpy(chosen)


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
    """CLIP (arXiv 2103.00020), seeing a quarter of the patches of an image (FLIP, arXiv 2212.00794).

    In the second half of the steps the text encoder stays as it is (LiT, arXiv 2111.07991): the image encoder
    needs more time, and the diffusion model reads the text encoder.
    """

    def __init__(self, clip: Any, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule, self.loss = clip, schedule, ClipLoss()
        self.model.visual.patch_dropout = ChosenPatches()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The text encoder learns in the first cycle of the schedule alone."""
        learns = self.schedule.cycle(self.global_step) < 1
        for part in (self.model.transformer, self.model.token_embedding, self.model.ln_final):
            part.requires_grad_(learns)
        self.model.positional_embedding.requires_grad_(learns)
        self.model.text_projection.requires_grad_(learns)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Contrast of the pairs in the batch."""
        images = (batch["images"] - self.mean) / self.std
        self.model.visual.patch_dropout.numbers = batch["patches"]
        image, text, scale = self.model(images, batch["tokens"])
        with torch.no_grad():
            right = (image @ text.T).argmax(1) == torch.arange(len(image), device=image.device)
        loss: Tensor = self.loss(image, text, scale)
        self.log_dict({"contrast": loss, "right": right.float().mean(), "scale": scale}, prog_bar=True)
        return loss

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """The scale stays at most 100, as published."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))

    def configure_optimizers(self) -> Any:
        return self.schedule.configure(self.parameters())
