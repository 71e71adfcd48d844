"""Random predictions and targets of small images."""

from __future__ import annotations

import torch

from odise_pl.models.ops.points import Uniform
from odise_pl.structures import MaskPredictions, Targets

CLASSES, QUERIES = 3, 5


def seeded(seed: int = 0) -> Uniform:
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.rand(*size, generator=generator)


def predictions(images: int = 2, queries: int = QUERIES, seed: int = 0) -> MaskPredictions:
    generator = torch.Generator().manual_seed(seed)
    return MaskPredictions(
        torch.randn(images, queries, CLASSES + 1, generator=generator).requires_grad_(),
        (3 * torch.randn(images, queries, 4, 6, generator=generator)).requires_grad_(),
        torch.zeros(images, queries, 1),
        torch.ones(()),
    )


def halved(p: MaskPredictions) -> MaskPredictions:
    return MaskPredictions(p.class_logits.bfloat16(), p.mask_logits.bfloat16(), p.mask_embed, p.logit_scale)


def target(count: int, seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    return Targets(
        torch.randint(0, CLASSES, (count,), generator=generator),
        torch.rand(count, 16, 24, generator=generator) > 0.5,
    )
