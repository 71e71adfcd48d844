"""How the small world's frozen models learn: what they share, and the autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from odise_pl.toyworld.corpus import SIDE, Corpus
from odise_pl.toyworld.sizes import DIFFUSION

Batch = dict[str, Any]
_SMALL_BATCHES = 0.8  # share of batches of crops
_CERTAIN = -9.0  # logarithm of the variance of a latent at the start
_KL_WEIGHT = 2e-7


class Draws(IterableDataset[Batch]):
    """Endless batches, each decided by the seed and its number alone: a resumed run goes on with the next.

    Args:
        make: generator and number to batch.
        seed: of all batches.
        first: number of the first batch.
    """

    def __init__(self, make: Callable[[np.random.Generator, int], Batch], seed: int, first: int = 0) -> None:
        self.make, self.seed, self.first = make, seed, first

    def __iter__(self) -> Iterator[Batch]:
        number = self.first
        while True:
            yield self.make(np.random.default_rng([self.seed, number]), number)
            number += 1


@dataclass(frozen=True)
class Schedule:
    """AdamW with a warm-up and cosines to zero (arXiv 1608.03983).

    Attributes:
        steps: optimiser steps.
        lr: highest learning rate.
        cycles: cosines, one after the other.
        first: steps that were done before this run, by another whose weights it starts from.
        warmup: steps until the learning rate is what the cosine says.
        weight_decay: of matrices and convolutions.
    """

    steps: int
    lr: float
    cycles: int = 1
    first: int = 0
    warmup: int = 100
    weight_decay: float = 0.01

    def factor(self, step: int) -> float:
        """The learning rate at a step of this run, as a share of the highest."""
        done = 1.0 if self.first + step >= self.steps else self.cycle(step) % 1
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * done))

    def cycle(self, step: int) -> float:
        """How many cosines are behind a step of this run."""
        return self.cycles * (self.first + step) / self.steps

    def configure(self, parameters: Iterable[nn.Parameter]) -> Any:
        """What Lightning's ``configure_optimizers`` returns."""
        every = list(parameters)
        groups = [
            {"params": [p for p in every if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.99))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def pixels(images: list[np.ndarray]) -> Tensor:
    """uint8 pictures to float32 [N, 3, H, W] in 0..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)


def picture_batch(corpus: Corpus, size: int, random: np.random.Generator, number: int = 0) -> Batch:
    """``images`` [N, 3, S, S] in 0..1, half of them mirrored; ``noise`` for their latents.

    Most batches are ``size`` small crops, which cost a quarter of whole pictures and differ more; the others
    are a quarter as many whole pictures. The number of the batch does not matter.
    """
    small = random.random() < _SMALL_BATCHES
    side, count = (SIDE // 2, size) if small else (SIDE, max(1, size // 4))
    images = pixels([_view(corpus, side, random) for _ in range(count)])
    noise = random.standard_normal((count, DIFFUSION.latent_channels, side // 8, side // 8), np.float32)
    return {"images": images, "noise": torch.from_numpy(noise)}


def _view(corpus: Corpus, side: int, random: np.random.Generator) -> np.ndarray:
    image = corpus.image(int(random.integers(len(corpus))))
    top, left = (int(random.integers(0, SIDE - side + 1)) for _ in "yx")
    view = image[top : top + side, left : left + side]
    return view[:, ::-1] if random.random() < 0.5 else view


@torch.no_grad()
def start_linear(vae: Any) -> Any:
    """An autoencoder that learns faster: no residual branch adds anything yet, and latents are certain.

    Latents as uncertain as the usual start makes them drown in noise what little they carry at first.
    """
    for name, parameter in vae.named_parameters():
        if ".conv2." in name or ".to_out.0." in name:
            parameter.zero_()
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] *= 0.1
    vae.quant_conv.bias[channels:] = _CERTAIN
    return vae


class Autoencoder(lightning.LightningModule):
    """The VAE of latent diffusion (arXiv 2112.10752), with squared error in place of perceptual losses."""

    def __init__(self, vae: Any, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule = vae, schedule

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Squared error in pixels of -1..1 and a slight pull of the latents to the normal distribution."""
        images = 2 * batch["images"] - 1
        posterior = self.model.encode(images).latent_dist
        restored = self.model.decode(posterior.mean + posterior.std * batch["noise"]).sample
        error = F.mse_loss(restored, images)
        kl = posterior.kl().mean()
        self.log_dict({"mse": error, "psnr": 10 * torch.log10(4 / error.detach()), "kl": kl}, prog_bar=True)
        return error + _KL_WEIGHT * kl

    def configure_optimizers(self) -> Any:
        return self.schedule.configure(self.parameters())
