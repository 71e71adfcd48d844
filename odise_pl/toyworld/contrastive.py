"""How the small world's CLIP learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.backbones.clip import MEAN, STD, embed_regions
from odise_pl.backbones.tokens import tokenize as byte_pairs
from odise_pl.toyworld.captions import pick
from odise_pl.toyworld.corpus import SIDE, Box, Corpus
from odise_pl.toyworld.pretraining import Batch, Schedule, pixels
from odise_pl.toyworld.sizes import CLIP, VOCABULARY

PATCHES = 64  # of an image that CLIP is shown, a quarter
_DETAILS = 0.7  # share of images of one thing or kind of stuff that CLIP is shown, ...
_ENLARGED = 0.4  # ... and of those among them that fill the image, after the first third
_SURROUNDINGS = 0.4  # the most that is seen on each side of a thing, of its size
_SHOWN = (0.3, 1.0)  # share of the patches of a part that are seen


def clip_batch(corpus: Corpus, steps: int, size: int, random: np.random.Generator, number: int) -> Batch:
    """What CLIP learns from in one step; it differs with the thirds of ``steps``.

    * At first :func:`patches_batch` shows whole pictures and things, enlarged: names are learned quickly;
    * then most of its images are things and kinds of stuff, more than half as large as they are;
    * at last :func:`regions_batch` shows parts in their pictures, as masked CLIP sees them.
    """
    third = 3 * number // steps
    return (
        patches_batch(corpus, third == 0, size, random) if third < 2 else regions_batch(corpus, size, random)
    )


def patches_batch(corpus: Corpus, easy: bool, size: int, random: np.random.Generator) -> Batch:
    """``images`` [size, 3, SIDE, SIDE] in 0..1, ``patches`` [size, PATCHES] to look at, ``tokens`` of each.

    Some of the images are whole pictures, most of them details. Of details that are shown as large as they
    are in the picture, which are none if it is ``easy``, patches outside are not looked at.
    """
    pair = partial(_pair, corpus, random, easy)
    pairs = [pair(int(index)) for index in random.integers(len(corpus), size=size)]
    images, patches, captions = zip(*pairs, strict=True)
    return {"images": torch.stack(images), "patches": torch.stack(patches), "tokens": _tokens(captions)}


def _tokens(captions: Sequence[str]) -> Tensor:
    return byte_pairs(captions, VOCABULARY, CLIP.text_length)


def regions_batch(corpus: Corpus, size: int, random: np.random.Generator) -> Batch:
    """A third of ``size`` images, and parts of them that have captions (grounded captions, arXiv 2306.14824).

    Returns:
        ``images`` [N, 3, SIDE, SIDE] in 0..1, ``visible`` bool [N, R, patches], of which some rows show
        nothing, ``tokens`` of the captions of all images, then of all parts that show something.
    """
    numbers = random.integers(len(corpus), size=max(1, size // 3))
    views = [_view(corpus, random, int(index)) for index in numbers]
    images, captions, regions = zip(*views, strict=True)
    every = [region for one in regions for region in one]
    visible = np.zeros((len(images), max(1, *map(len, regions)), (SIDE // CLIP.patch_size) ** 2), bool)
    for rows, one in zip(visible, regions, strict=True):
        for row, (patches, _) in zip(rows, one, strict=False):
            row[:] = patches
    tokens = _tokens([*captions, *(caption for _, caption in every)])
    return {"images": torch.cat(images), "visible": torch.from_numpy(visible), "tokens": tokens}


def _view(
    corpus: Corpus, random: np.random.Generator, index: int
) -> tuple[Tensor, str, list[tuple[NDArray[np.bool_], str]]]:
    """A picture or a detail, enlarged; its caption; patches and captions of the parts in it."""
    details, captions, box = corpus.details[index], corpus.captions[index], (0, 0, SIDE, SIDE)
    if details and random.random() < _ENLARGED:
        detail = pick(details, random)
        captions, box = detail.captions, _around(detail.box, random)
    seen = [(part, _moved(part.box, box)) for part in details if _is_inside(part.box, box)]
    regions = [(_part_patches(moved, random), pick(part.captions, random)) for part, moved in seen]
    return _enlarged(pixels([corpus.image(index)]), box), pick(captions, random), regions


def _is_inside(part: Box, box: Box) -> bool:
    """Whether a box holds the centre of another."""
    x, y = (part[0] + part[2]) / 2, (part[1] + part[3]) / 2
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def _moved(part: Box, box: Box) -> Box:
    """Where a part is when a box fills the image."""
    (x, y), (width, height) = box[:2], (box[2] - box[0], box[3] - box[1])
    left, right = (min(SIDE, max(0, round(SIDE * (side - x) / width))) for side in (part[0], part[2]))
    top, bottom = (min(SIDE, max(0, round(SIDE * (side - y) / height))) for side in (part[1], part[3]))
    return left, top, right, bottom


def _part_patches(box: Box, random: np.random.Generator) -> NDArray[np.bool_]:
    """Some of the patches of a box, one at least."""
    numbers = random.permutation(_patches(box))
    shown = np.zeros((SIDE // CLIP.patch_size) ** 2, bool)
    shown[numbers[: max(1, round(len(numbers) * random.uniform(*_SHOWN)))]] = True
    return shown


def _pair(corpus: Corpus, random: np.random.Generator, easy: bool, index: int) -> tuple[Tensor, Tensor, str]:
    image = pixels([corpus.image(index)])
    details = [detail for detail in corpus.details[index] if detail.thing or not easy]
    whole = (0, 0, SIDE, SIDE)
    if not details or random.random() >= _DETAILS:
        return image[0], _some_patches(whole, random), pick(corpus.captions[index], random)
    detail = pick(details, random)
    box = _around(detail.box, random)
    if easy or random.random() < _ENLARGED:
        image, box = _enlarged(image, box), whole
    return image[0], _some_patches(box, random), pick(detail.captions, random)


def _around(box: Box, random: np.random.Generator) -> Box:
    left, top, right, bottom = box
    x, y = (round(side * random.uniform(0, _SURROUNDINGS)) for side in (right - left, bottom - top))
    return max(0, left - x), max(0, top - y), min(SIDE, right + x + 1), min(SIDE, bottom + y + 1)


def _enlarged(image: Tensor, box: Box) -> Tensor:
    """A box of an image [1, 3, SIDE, SIDE], made to fill it."""
    left, top, right, bottom = box
    if box == (0, 0, SIDE, SIDE):
        return image
    return F.interpolate(
        image[..., top:bottom, left:right], (SIDE, SIDE), mode="bilinear", align_corners=False
    )


def _some_patches(box: Box, random: np.random.Generator) -> Tensor:
    """Numbers of PATCHES patches in a box, each as often as any other or once more."""
    return torch.from_numpy(np.resize(random.permutation(_patches(box)), PATCHES))


def _patches(box: Box) -> NDArray[np.int64]:
    """Numbers of the patches that a box touches."""
    size = CLIP.patch_size
    left, top, right, bottom = box[0] // size, box[1] // size, -(-box[2] // size), -(-box[3] // size)
    return (SIDE // size * np.arange(top, bottom)[:, None] + np.arange(left, right)).ravel()


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
        return torch.cat([whole, parts[batch["visible"].any(2)]])

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """The scale stays at most 100, as published."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))

    def configure_optimizers(self) -> Any:
        return self.schedule.configure(self.parameters())
