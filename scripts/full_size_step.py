"""The published label model with random weights and its training step, for benchmarks."""

from __future__ import annotations

import resource
import sys
from functools import partial
from pathlib import Path

import torch
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


def build() -> Odise:
    """The published model with random weights."""
    return build_odise(
        BackboneSettings(),
        ClipSettings(),
        implicit_captioner(),
        HeadSettings(),
        ClassifierSettings(),
        InferenceSettings(),
        "label",
    )


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


def peak_gib() -> float:
    """The most memory that this process has held."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    # Linux's ru_maxrss of a new process begins with that of its parent
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
