"""An evaluation and a training step of the published model and the small world's, for benchmarks."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.losses.criterion import SetCriterion
from odise_pl.models.inference import NetworkPrediction
from odise_pl.models.odise import Odise
from odise_pl.runs.conf import compose_config
from odise_pl.structures import Targets
from odise_pl.training.optimization import OptimizerSettings, build_optimizer
from odise_pl.vocabulary import load_vocabulary

VOCABULARY = "coco_panoptic"
Part = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Setting:
    """A network with its losses and optimiser, and the images that it gets.

    Attributes:
        model: the images lie on its device.
        criterion: losses.
        optimizer: of the training step.
        height, width: of the images, in pixels; training needs squares.
        batch: number of images.
        dtype: of autocast; float32 is without.
    """

    model: Odise
    criterion: SetCriterion
    optimizer: OptimizerSettings
    height: int
    width: int
    batch: int = 1
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Of the network and the images."""
        return self.model.clip.mean.device

    def images(self) -> Tensor:
        """Random images [batch, 3, height, width]."""
        return torch.rand(self.batch, 3, self.height, self.width).to(self.device)

    def autocast(self) -> torch.autocast:
        """Of the forward pass and the losses."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def published(size: int) -> Setting:
    """The published label model with random weights; one image."""
    weights = (f"{network}.weights=random" for network in ("backbone", "clip"))
    return _composed(*weights, f"data.image_size={size}", "global_batch=1")


def toy() -> Setting:
    """The small world's model of ``experiment=toy``: pre-trained frozen weights, eight images."""
    return _composed("experiment=toy")


def _composed(*settings: str) -> Setting:
    config = compose_config("train", ["run_dir=.", *settings])
    model = NetworkSettings.of_config(config).build(config.paths)
    criterion, optimizer = instantiate(config.criterion), instantiate(config.optimizer)
    size = config.data.image_size
    return Setting(model, criterion, optimizer, size, size, config.global_batch)


def _random_targets(size: int, classes: int) -> Targets:
    """Six squares of random classes."""
    masks = torch.zeros(6, size, size, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(0, size // 2, (2,)).tolist()
        mask[top : top + size // 3, left : left + size // 3] = True
    return Targets(torch.randint(0, classes, (len(masks),)), masks)


class TrainingStep:
    """Forward, losses, backward, clipping and AdamW on the same random images each time.

    Args:
        setting: of the step.
        part: is entered with the name of each part that is no module.
    """

    def __init__(self, setting: Setting, part: Part = nullcontext) -> None:
        self._setting, self._part = setting, part
        model, vocabulary = setting.model.train(), load_vocabulary(VOCABULARY)
        self._classes = model.encode_classes(vocabulary.labels)  # once in a run
        self._optimizer = build_optimizer(model, setting.optimizer, setting.optimizer.reference_batch)
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._images = setting.images()
        self._targets = [
            _random_targets(setting.height, len(vocabulary)).to(setting.device) for _ in range(setting.batch)
        ]

    def __call__(self) -> tuple[Tensor, Tensor]:
        """All weighted losses, and the norm of the gradients before clipping; gradients stay."""
        setting = self._setting
        self._optimizer.zero_grad()
        with setting.autocast():
            outputs = setting.model(self._images, self._classes)
        with self._part("losses"), setting.autocast():
            uniform, ids = partial(torch.rand, device=setting.device), list(range(setting.batch))
            losses = setting.criterion(outputs, self._targets, uniform, ids)
            terms = torch.stack([term for loss in losses for term in vars(loss).values()])
        del outputs  # as in training, where nothing holds them during the backward pass
        with self._part("backward"):
            terms.sum().backward()
        with self._part("optimiser"):
            norm: Tensor = nn.utils.clip_grad_norm_(self._trainable, setting.optimizer.clip_norm)
            self._optimizer.step()
        return terms, norm


class Evaluation:
    """Predictions for the same random images each time, with all results.

    Args:
        setting: of the evaluation.
        part: is entered with the name of the part that is no module.
    """

    def __init__(self, setting: Setting, part: Part = nullcontext) -> None:
        self._setting, self._part = setting, part
        self._classes = setting.model.eval().prepare(load_vocabulary(VOCABULARY), None)
        self._images = setting.images()

    def __call__(self) -> list[NetworkPrediction]:
        """The predictions, whose results are computed."""
        setting = self._setting
        sizes = [(setting.height, setting.width)] * setting.batch
        with torch.no_grad(), setting.autocast():
            found = list(setting.model.predict(self._images, sizes, sizes, self._classes))
            with self._part("results"):
                for prediction in found:
                    _ = prediction.panoptic, prediction.instances, prediction.semantic
        return found


def peak_gib() -> float:
    """The most memory that this process has held."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    # Linux's ru_maxrss of a new process begins with that of its parent
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
