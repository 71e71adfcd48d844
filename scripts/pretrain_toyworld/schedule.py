"""Reproducible batches and the optimizer, for the pre-training of all frozen models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

Batch = dict[str, Any]


class Draws(IterableDataset[Batch]):
    """Endless batches, each determined by the seed and its number, so that a run can resume at any batch.

    Args:
        make: makes a batch from a random generator and the number of the batch.
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
    """AdamW with warm-up and cosine decay with restarts (arXiv 1608.03983).

    Attributes:
        steps: optimizer steps.
        lr: highest learning rate.
        cycles: number of cosine cycles.
        warmup: steps of linear warm-up.
        weight_decay: of matrices and convolutions.
    """

    steps: int
    lr: float
    cycles: int = 1
    warmup: int = 100
    weight_decay: float = 0.01

    def factor(self, step: int) -> float:
        """The learning rate at a step, relative to the highest."""
        done = 1.0 if step >= self.steps else self.cycle(step) % 1
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * done))

    def cycle(self, step: int) -> float:
        """The number of cycles before a step, as a fraction."""
        return self.cycles * step / self.steps

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
    """uint8 pictures [H, W, 3] to float32 [N, 3, H, W] in 0..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
