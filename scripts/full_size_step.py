"""One training step of the published label model with random weights: parameters, time, memory.

``python scripts/full_size_step.py`` needs no weights and no data, about two minutes and 16 GB on a CPU.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.models.build import (
    BackboneSettings,
    ClipSettings,
    HeadSettings,
    build_odise,
    implicit_captioner,
)
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import Odise
from odise_pl.structures import Targets
from odise_pl.training.optimization import OptimizerSettings, build_optimizer
from odise_pl.vocabulary import load_vocabulary


@dataclass(frozen=True)
class StepReport:
    """Results and costs of one training step.

    Attributes:
        losses: every weighted loss, three per decoder output.
        gradient_norm: of all trainable parameters together, before clipping.
        step_seconds: forward, losses, backward and optimiser.
        built_gib, peak_gib: most memory this process has held (resident set), after building and in the end.
        frozen_gradients: frozen parameters with a gradient; must be 0.
        missing_gradients: trainable parameters without a gradient; must be 0.
        unmoved: trainable parameters that the optimiser did not change.
    """

    losses: list[float]
    gradient_norm: float
    step_seconds: float
    built_gib: float
    peak_gib: float
    frozen_gradients: int
    missing_gradients: int
    unmoved: list[str]


def build(supervision: str = "label", checkpoint_activations: bool = False) -> Odise:
    """The published model with random weights."""
    return build_odise(
        BackboneSettings(checkpoint_activations=checkpoint_activations),
        ClipSettings(),
        implicit_captioner(),
        HeadSettings(),
        ClassifierSettings(),
        InferenceSettings(),
        supervision,
    )


def parameters_by_part(model: Odise) -> dict[str, int]:
    """Number of trainable parameters of each part; together all of them."""
    decoder, text = model.mask_decoder, model.text_projection
    layers: list[Any] = list(decoder.layers)
    parts: dict[str, Sequence[nn.Module | nn.Parameter | None]] = {
        "captioner": [model.backbone.captioner],
        "feature projections": [model.backbone.pyramid],
        "pixel decoder": [model.pixel_decoder],
        "decoder self-attention": [m for x in layers for m in (x.self_attention, x.self_norm)],
        "decoder cross-attention": [m for x in layers for m in (x.cross_attention, x.cross_norm)],
        "decoder feed-forward": [m for x in layers for m in (x.linear1, x.linear2, x.feedforward_norm)],
        "queries, levels, norm": [decoder.query_feat, decoder.query_embed, decoder.level_embed, decoder.norm],
        "mask MLP": [decoder.mask_mlp],
        "mask-embedding head": [decoder.embedding],
        "text projection": [text.proj],
        "null embedding": [text.null_embed],
        "object head": [decoder.object_head],
    }
    return {name: sum(_trainable(module) for module in modules) for name, modules in parts.items()}


def _trainable(part: nn.Module | nn.Parameter | None) -> int:
    if part is None:
        return 0
    parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad)


def random_targets(size: int, count: int, classes: int) -> Targets:
    """Rectangles of random classes."""
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(0, size // 2, (2,)).tolist()
        mask[top : top + size // 3, left : left + size // 3] = True
    return Targets(torch.randint(0, classes, (count,)), masks)


class TrainingStep:
    """Forward, losses, backward, clipping and AdamW on the same random images each time.

    Args:
        model: the network; the images lie on its device.
        size: side of the images in pixels.
        batch: number of images.
        targets: masks per image.
        dtype: of autocast in the forward pass and the losses; float32 is without.
    """

    def __init__(
        self, model: Odise, size: int, batch: int = 1, targets: int = 6, dtype: torch.dtype = torch.float32
    ) -> None:
        self._model, self._settings, self._dtype = model, OptimizerSettings(), dtype
        vocabulary = load_vocabulary("coco_panoptic")
        self._optimizer = build_optimizer(model.train(), self._settings, self._settings.reference_batch)
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._criterion = SetCriterion(HungarianMatcher(), LossWeights())
        self._classes = model.encode_classes(vocabulary.labels)  # once in a run
        device = model.clip.mean.device
        self._images = torch.rand(batch, 3, size, size).to(device)
        self._targets = [random_targets(size, targets, len(vocabulary)).to(device) for _ in range(batch)]

    def __call__(self) -> tuple[Tensor, Tensor]:
        """All weighted losses, and the norm of the gradients before clipping; gradients stay."""
        device = self._images.device
        self._optimizer.zero_grad()
        with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            outputs = self._model(self._images, self._classes)
            uniform, ids = partial(torch.rand, device=device), range(len(self._images))
            losses = self._criterion(outputs, self._targets, uniform, list(ids))
            terms = torch.stack([term for loss in losses for term in vars(loss).values()])
        terms.sum().backward()
        norm: Tensor = nn.utils.clip_grad_norm_(self._trainable, self._settings.clip_norm)
        self._optimizer.step()
        return terms, norm


def step(model: Odise, size: int = 512, targets: int = 6) -> StepReport:
    """One :class:`TrainingStep` on one image."""
    built = peak_gib()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trainable.items()}
    take_step = TrainingStep(model, size, targets=targets)
    start = time.perf_counter()
    terms, norm = take_step()
    return StepReport(
        losses=terms.tolist(),
        gradient_norm=norm.item(),
        step_seconds=time.perf_counter() - start,
        built_gib=built,
        peak_gib=peak_gib(),
        frozen_gradients=sum(p.grad is not None for p in model.parameters() if not p.requires_grad),
        missing_gradients=sum(p.grad is None for p in trainable.values()),
        unmoved=[n for n, p in trainable.items() if torch.equal(p, before[n])],
    )


def peak_gib() -> float:
    """The most memory that this process has held."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    # Linux's ru_maxrss of a new process begins with that of its parent
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--checkpoint-activations", action="store_true", help="less memory, more time")
    options = parser.parse_args()
    torch.manual_seed(0)
    start = time.perf_counter()
    model = build(checkpoint_activations=options.checkpoint_activations)
    seconds = time.perf_counter() - start
    parts = parameters_by_part(model)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    report = step(model, options.size)
    table = Table("", "", title="Published label model, random weights, float32")
    for name, count in [*parts.items(), ("trainable", sum(parts.values())), ("frozen, in memory", frozen)]:
        table.add_row(name, f"{count:,}")
    table.add_section()
    table.add_row("build (s)", f"{seconds:.1f}")
    table.add_row(f"training step at {options.size}x{options.size} (s)", f"{report.step_seconds:.1f}")
    table.add_row("peak memory, built / in all (GiB)", f"{report.built_gib:.2f} / {report.peak_gib:.2f}")
    table.add_row("total loss", f"{sum(report.losses):.2f}")
    table.add_row("gradient norm before clipping", f"{report.gradient_norm:.2f}")
    table.add_row("frozen parameters with a gradient", str(report.frozen_gradients))
    table.add_row("trainable parameters without one", str(report.missing_gradients))
    Console().print(table)


if __name__ == "__main__":
    main()
