"""Pre-training of the small world's CLIP."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import normalize

from odise_pl.models.backbones.clip import MEAN, STD, build_clip, embed_regions
from scripts.pretrain_toyworld.clip_batches import clip_batch, details_batch
from scripts.pretrain_toyworld.corpus import paint_corpus
from scripts.pretrain_toyworld.networks import CLIP, CLIP_FILE, CONV_CLIP, CONV_CLIP_FILE
from scripts.pretrain_toyworld.training import Batch, Recipe, in_two_sizes, save_half, train

RECIPE = Recipe(pictures=24_000, steps=18_000, batch=96, lr=1e-3, cycles=3)


def pretrain(recipe: Recipe, out: Path, work: Path, device: str = "cpu") -> None:
    """Train CLIP and write it to ``out``."""
    batches = partial(clip_batch, paint_corpus(recipe.pictures), recipe.steps, recipe.batch)
    torch.manual_seed(0)
    clip = train(Contrast(build_clip(CLIP)), batches, recipe, work / "clip.pt", device).clip
    save_half(clip, out / CLIP_FILE)


def pretrain_convolutional(recipe: Recipe, out: Path, work: Path, device: str = "cpu") -> None:
    """Train a convolutional image encoder for the texts of the CLIP in ``out``, and write both to ``out``."""
    torch.manual_seed(0)
    clip = build_clip(CONV_CLIP)
    text = load_file(out / CLIP_FILE)
    clip.load_state_dict({n: t.float() for n, t in text.items() if not n.startswith("visual.")}, strict=False)
    batches = partial(in_two_sizes(details_batch), paint_corpus(recipe.pictures), recipe.batch)
    clip.visual.to(memory_format=torch.channels_last)  # a quarter faster
    clip = train(ImageContrast(clip), batches, recipe, work / "clip_conv.pt", device).clip
    save_half(clip, out / CONV_CLIP_FILE)


class ImageContrast(nn.Module):
    """Contrastive loss of whole images; the text encoder is frozen."""

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.clip, self.loss = clip.requires_grad_(False), ClipLoss()
        self.clip.visual.requires_grad_(True)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a :func:`details_batch`."""
        images = normalize(batch["images"], list(MEAN), list(STD))
        image, text = self.clip.encode_image(images, True), self.clip.encode_text(batch["tokens"], True)
        loss: Tensor = self.loss(image, text, self.clip.logit_scale.exp())
        return loss


class ChosenPatches(nn.Module):
    """In place of open_clip's patch dropout: the caller sets which patches are visible."""

    numbers: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, 1 + patches, D] to [N, 1 + chosen, D]; the class token comes first."""
        if self.numbers is None:
            return tokens
        places = torch.cat([self.numbers.new_zeros(len(tokens), 1), self.numbers + 1], dim=1)
        return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


class Contrast(nn.Module):
    """Contrastive loss of CLIP (arXiv 2103.00020), on a quarter of the patches (FLIP, arXiv 2212.00794) or on
    regions.
    """

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.clip, self.loss = clip, ClipLoss()
        self.clip.visual.patch_dropout = ChosenPatches()

    def forward(self, batch: Batch) -> Tensor:
        """The loss of the pairs in a batch of :func:`clip_batch`."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0, math.log(100))  # as published
        image = F.normalize(self._embed(batch), dim=-1)
        with torch.set_grad_enabled(bool(batch["text_learns"])):
            text = self.clip.encode_text(batch["tokens"], normalize=True)
        loss: Tensor = self.loss(image, text, self.clip.logit_scale.exp())
        return loss

    def _embed(self, batch: Batch) -> Tensor:
        """Embeddings of the images, then of their parts if there are any."""
        images = normalize(batch["images"], list(MEAN), list(STD))
        self.clip.visual.patch_dropout.numbers = batch.get("patches")
        if "patches" in batch:
            embeddings: Tensor = self.clip.encode_image(images)
            return embeddings
        parts, whole = embed_regions(self.clip.visual, images, batch["visible"])
        return torch.cat([whole[batch["captioned"]], parts[batch["visible"].any(2)]])
