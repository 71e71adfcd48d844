"""Pre-training of the small world's autoencoder, the VAE of latent diffusion (arXiv 2112.10752)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.models.backbones.stable_diffusion import build_diffusion
from odise_pl.toyworld.scene import pick
from scripts.pretrain_toyworld.corpus import SIDE, Corpus, paint_corpus
from scripts.pretrain_toyworld.networks import DIFFUSION, DIFFUSION_FOLDER
from scripts.pretrain_toyworld.training import Batch, Recipe, pixels, train

RECIPE = Recipe(pictures=24_000, steps=10_000, batch=8, lr=1.5e-3)
_SMALL_BATCHES = 0.8  # share of batches of crops
_CERTAIN = -9.0  # logarithm of the variance of a latent at the start
_KL_WEIGHT = 2e-7
_SCALE_PICTURES = 200  # to measure the scale of the latents


def pretrain(recipe: Recipe, out: Path, work: Path, device: str = "cpu") -> None:
    """Train the VAE and write it to ``out``."""
    corpus = paint_corpus(recipe.pictures)
    torch.manual_seed(0)
    task = Autoencoder(build_diffusion(DIFFUSION).vae)
    batches = partial(picture_batch, corpus, recipe.batch)
    vae = train(task, batches, recipe, work / "autoencoder.pt", device).vae.eval()
    with torch.no_grad():  # the noise schedule expects latents of unit variance
        images = 2 * pixels([picture.image for picture in corpus[:_SCALE_PICTURES]]) - 1
        vae.register_to_config(scaling_factor=float(1 / vae.encode(images).latent_dist.mean.std()))
    vae.half().save_pretrained(out / DIFFUSION_FOLDER / "vae")


def picture_batch(corpus: Corpus, size: int, random: np.random.Generator, number: int) -> Batch:
    """``images`` [N, 3, S, S] in 0..1, half of them mirrored, and ``noise`` for their latents.

    Most batches are ``size`` small crops, which are cheaper and more varied; the others are a quarter as many
    whole pictures. The number of the batch is ignored.
    """
    small = random.random() < _SMALL_BATCHES
    side, count = (SIDE // 2, size) if small else (SIDE, max(1, size // 4))
    images = pixels([_view(corpus, side, random) for _ in range(count)])
    noise = random.standard_normal((count, DIFFUSION.latent_channels, side // 8, side // 8), np.float32)
    return {"images": images, "noise": torch.from_numpy(noise)}


def _view(corpus: Corpus, side: int, random: np.random.Generator) -> np.ndarray:
    top, left = (int(random.integers(0, SIDE - side + 1)) for _ in "yx")
    view = pick(corpus, random).image[top : top + side, left : left + side]
    return view[:, ::-1] if random.random() < 0.5 else view


class Autoencoder(nn.Module):
    """Loss of the VAE, with squared error in place of perceptual losses.

    The VAE is initialised with zero residual branches and a small variance of latents, so that it learns
    faster: with the usual initialisation, noise dominates the latents at first.
    """

    @torch.no_grad()
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        for name, parameter in vae.named_parameters():
            if ".conv2." in name or ".to_out.0." in name:
                parameter.zero_()
        vae.quant_conv.weight[DIFFUSION.latent_channels :] *= 0.1
        vae.quant_conv.bias[DIFFUSION.latent_channels :] = _CERTAIN

    def forward(self, batch: Batch) -> Tensor:
        """Squared error of pixels in -1..1, and a small KL divergence of the latents."""
        images = 2 * batch["images"] - 1
        posterior = self.vae.encode(images).latent_dist
        restored = self.vae.decode(posterior.mean + posterior.std * batch["noise"]).sample
        return F.mse_loss(restored, images) + _KL_WEIGHT * posterior.kl().mean()
