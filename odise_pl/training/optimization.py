"""The published optimiser and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from odise_pl.errors import SettingError, check_number

PUBLISHED_BATCH = 2  # on each of 32 devices
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with a linear warm-up and steps down.

    Attributes:
        lr: learning rate for a global batch of ``reference_batch`` images.
        reference_batch: the learning rate is scaled by the global batch over this.
        weight_decay: of all weights but norms and biases.
        clip_norm: largest norm of all gradients together.
        warmup_steps: steps until the full learning rate.
        warmup_factor: where the warm-up starts.
        milestones: shares of the run after which the learning rate is multiplied by ``gamma``.
        gamma: see ``milestones``.
    """

    lr: float = 1e-4
    reference_batch: int = 64
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    warmup_steps: int = 250
    warmup_factor: float = 0.067
    milestones: Sequence[float] = (0.889, 0.963)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "clip_norm", "warmup_factor", "gamma"):
            check_number(f"optimizer.{name}", getattr(self, name), whole=False)
        check_number("optimizer.warmup_steps", self.warmup_steps)
        check_number("optimizer.reference_batch", self.reference_batch, 1)
        if self.lr == 0:
            raise SettingError("optimizer.lr=0 trains nothing; it must be above 0")
        if any(not 0 < m <= 1 for m in self.milestones):
            raise SettingError(f"optimizer.milestones={list(self.milestones)}: shares of the run, 0..1")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups of the trainable parameters: decayed, and not decayed.

    Weights of normalisation layers and parameters named exactly ``bias`` are not decayed (the
    ``in_proj_bias`` of an attention layer is, as published).
    """
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            (plain if name == "bias" or isinstance(module, NORMS) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, settings: OptimizerSettings, global_batch: int) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of ``model``."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr * global_batch / settings.reference_batch)


def learning_rate_factor(settings: OptimizerSettings, total_steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at each optimiser step of a run of ``total_steps``."""
    drops = [round(share * total_steps) for share in settings.milestones]

    def factor(step: int) -> float:
        warm = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
        ramp = settings.warmup_factor + (1 - settings.warmup_factor) * warm
        return float(ramp * settings.gamma ** sum(step >= drop for drop in drops))

    return factor


def choose_batch_size(global_batch: int, devices: int) -> int:
    """Images per forward pass on each device: two, as published, or one if they do not divide its share."""
    return math.gcd(PUBLISHED_BATCH, global_batch // devices)


def accumulation_steps(global_batch: int, batch_size: int, devices: int) -> int:
    """Forward passes per optimiser step so that ``devices`` of ``batch_size`` images make the global batch.

    Raises:
        SettingError: no whole number of passes does.
    """
    together = batch_size * devices
    if global_batch < together or global_batch % together:
        raise SettingError(
            f"global_batch={global_batch} is not a multiple of {devices} devices x batch_size={batch_size}: "
            "change global_batch or data.batch_size"
        )
    return global_batch // together
