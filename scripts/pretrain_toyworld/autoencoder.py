"""Pre-training of the small world's autoencoder, the VAE of latent diffusion (arXiv 2112.10752)."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.pretrain_toyworld.corpus import SIDE, Corpus
from scripts.pretrain_toyworld.models import DIFFUSION
from scripts.pretrain_toyworld.schedule import Batch, Schedule, pixels

_SMALL_BATCHES = 0.8  # share of batches of crops
_CERTAIN = -9.0  # logarithm of the variance of a latent at the start
_KL_WEIGHT = 2e-7
_SCALE_PICTURES = 200  # to measure the scale of the latents


def picture_batch(corpus: Corpus, size: int, random: np.random.Generator, number: int = 0) -> Batch:
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
    image = corpus.images[int(random.integers(len(corpus)))]
    top, left = (int(random.integers(0, SIDE - side + 1)) for _ in "yx")
    view = image[top : top + side, left : left + side]
    return view[:, ::-1] if random.random() < 0.5 else view


@torch.no_grad()
def start_linear(vae: Any) -> Any:
    """Initialise a VAE with zero residual branches and a small variance of latents, so that it learns faster.

    With the usual initialisation, noise dominates the latents at first.
    """
    for name, parameter in vae.named_parameters():
        if ".conv2." in name or ".to_out.0." in name:
            parameter.zero_()
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] *= 0.1
    vae.quant_conv.bias[channels:] = _CERTAIN
    return vae


@torch.no_grad()
def unit_scale(vae: Any, corpus: Corpus) -> float:
    """The factor that gives latents a standard deviation of one."""
    images = 2 * pixels(list(corpus.images[:_SCALE_PICTURES])) - 1
    return float(1 / vae.eval().encode(images).latent_dist.mean.std())


class Autoencoder(lightning.LightningModule):
    """Trains the VAE with squared error in place of perceptual losses."""

    def __init__(self, vae: Any, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule = vae, schedule

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Squared error of pixels in -1..1, and a small KL divergence of the latents."""
        images = 2 * batch["images"] - 1
        posterior = self.model.encode(images).latent_dist
        restored = self.model.decode(posterior.mean + posterior.std * batch["noise"]).sample
        error = F.mse_loss(restored, images)
        kl = posterior.kl().mean()
        self.log_dict({"mse": error, "psnr": 10 * torch.log10(4 / error.detach()), "kl": kl}, prog_bar=True)
        return error + _KL_WEIGHT * kl

    def configure_optimizers(self) -> Any:
        return self.schedule.configure(self.parameters())
