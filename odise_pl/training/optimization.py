"""The published optimiser and its schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from odise_pl.errors import SettingError, check_number

ALGORITHMS = ("adamw", "muon", "sgd")
PUBLISHED_BATCH = 2  # on each of 32 devices
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, Muon or SGD with a linear warm-up, then steps down or a polynomial decay.

    Attributes:
        algorithm: ``adamw``, ``sgd``, or ``muon``: Muon for matrices, AdamW for all else.
        momentum: of SGD.
        muon_scale: factor of the learning rate of Muon's weights.
        lr: learning rate for a global batch of ``reference_batch`` images.
        reference_batch: the learning rate is scaled by the global batch over this.
        weight_decay: of all weights but norms and biases.
        clip_norm: largest norm of all gradients together.
        warmup_steps: steps until the full learning rate.
        warmup_factor: where the warm-up starts.
        milestones: shares of the run after which the learning rate is multiplied by ``gamma``.
        gamma: see ``milestones``.
        power: the learning rate is multiplied by (1 - step / steps) to this power, without milestones; None:
            milestones.
        lr_scale: factors of the learning rate of parts, by the start of their parameters' names; 0 freezes a
            part, which stays in checkpoints.
    """

    algorithm: str = "adamw"
    momentum: float = 0.9
    muon_scale: float = 1.0
    lr: float = 1e-4
    reference_batch: int = 64
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    warmup_steps: int = 250
    warmup_factor: float = 0.067
    milestones: Sequence[float] = (0.889, 0.963)
    gamma: float = 0.1
    power: float | None = None
    lr_scale: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise SettingError(f"optimizer.algorithm={self.algorithm}: choose one of {', '.join(ALGORITHMS)}")
        check_number("optimizer.momentum", self.momentum, whole=False, most=1)
        for name in ("lr", "muon_scale", "weight_decay", "clip_norm", "warmup_factor", "gamma"):
            check_number(f"optimizer.{name}", getattr(self, name), whole=False)
        for part, scale in (self.lr_scale or {}).items():
            check_number(f"optimizer.lr_scale.{part}", scale, whole=False)
        if self.power is not None:
            check_number("optimizer.power", self.power, whole=False)
        check_number("optimizer.warmup_steps", self.warmup_steps)
        check_number("optimizer.reference_batch", self.reference_batch, 1)
        if self.lr == 0:
            raise SettingError("optimizer.lr=0 trains nothing; it must be above 0")
        if any(not 0 < m <= 1 for m in self.milestones):
            raise SettingError(f"optimizer.milestones={list(self.milestones)}: shares of the run, 0..1")


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scale: Mapping[str, float] | None = None
) -> dict[float, list[dict[str, Any]]]:
    """Two groups of the trainable parameters, decayed and not decayed, by the factor of their learning rate.

    Weights of normalisation layers and parameters named exactly ``bias`` are not decayed (the
    ``in_proj_bias`` of an attention layer is, as published).

    Raises:
        SettingError: a part in ``lr_scale`` has no trainable parameter.
    """
    groups: dict[float, list[dict[str, Any]]] = {}
    seen: set[nn.Parameter] = set()
    unused = set(lr_scale or ())
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            parts = [part for part in lr_scale or () if f"{path}.{name}.".startswith(f"{part}.")]
            unused.difference_update(parts)
            scale = float((lr_scale or {})[max(parts, key=len)]) if parts else 1.0
            pair = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
            plain = name == "bias" or isinstance(module, NORMS)
            groups.setdefault(scale, pair)[plain]["params"].append(parameter)
    if unused:
        raise SettingError(
            f"optimizer.lr_scale: no trained parameter begins with {', '.join(sorted(unused))}; "
            "docs/finetune.md lists the parts"
        )
    return groups


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for the weights of linear layers and convolutions, AdamW for all else.

    A schedule and a checkpoint see one optimiser. A convolution's weight is a matrix with a row for each
    output channel, and queries, keys and values of an attention layer are one matrix. At equal learning
    rates, Muon's steps are about as large as AdamW's typically are (Liu et al., 2025, equation 4).

    Args:
        model: whose weights are meant.
        groups: of parameters, each with its learning rate and weight decay.
        scale: factor of the learning rate of Muon.
    """

    def __init__(self, model: nn.Module, groups: Sequence[dict[str, Any]], scale: float) -> None:
        matrices = {
            weight
            for module in model.modules()
            if not isinstance(module, nn.Embedding)
            for name, weight in module.named_parameters(recurse=False)
            if name.endswith("weight") and weight.ndim > 1
        }
        parts = [
            group
            | {"params": [p for p in group["params"] if (p in matrices) == muon], "muon": muon}
            | {"lr": group["lr"] * (scale if muon else 1)}
            for muon in (False, True)
            for group in groups
        ]
        super().__init__([group for group in parts if group["params"]], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            settings = {name: group[name] for name in ("lr", "weight_decay")}
            part: torch.optim.Optimizer
            if group["muon"]:
                matrices: dict[torch.Tensor, Any] = {
                    _matrix(parameter): self.state[parameter] for parameter in moved
                }
                part = torch.optim.Muon([*matrices], **settings, adjust_lr_fn="match_rms_adamw")
                part.state.update(matrices)
            else:
                part = torch.optim.AdamW(moved, **settings)
                part.state = self.state
            part.step()
        return loss


def _matrix(weight: nn.Parameter) -> nn.Parameter:
    """The same weight and gradient, with one column for each input of a row."""
    assert weight.grad is not None
    matrix = nn.Parameter(weight.detach().view(len(weight), -1))
    matrix.grad = weight.grad.reshape(matrix.shape)
    return matrix


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, global_batch: int
) -> torch.optim.Optimizer:
    """The optimiser of the trainable parameters of ``model``."""
    groups = parameter_groups(model, settings.weight_decay, settings.lr_scale)
    lr = settings.lr * global_batch / settings.reference_batch
    # those at the full rate come first: their learning rate is the one in the log
    scaled = [group | {"lr": lr * scale} for scale in sorted(groups, reverse=True) for group in groups[scale]]
    if settings.algorithm == "sgd":
        return torch.optim.SGD(scaled, lr=lr, momentum=settings.momentum)
    if settings.algorithm == "muon":
        return MuonAdamW(model, scaled, settings.muon_scale)
    return torch.optim.AdamW(scaled, lr=lr)


def learning_rate_factor(settings: OptimizerSettings, total_steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at each optimiser step of a run of ``total_steps``."""
    drops = [round(share * total_steps) for share in settings.milestones]

    def decay(step: int) -> float:
        if settings.power is None:
            return float(settings.gamma ** sum(step >= drop for drop in drops))
        return float(max(0.0, 1 - step / total_steps) ** settings.power)

    def factor(step: int) -> float:
        warm = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
        return (settings.warmup_factor + (1 - settings.warmup_factor) * warm) * decay(step)

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
