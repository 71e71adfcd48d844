"""The training loop of the frozen networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from odise_pl.errors import SettingError
from odise_pl.files import atomic_write
from scripts.pretrain_toyworld.corpus import Pixels

Batch = dict[str, Tensor]
_Task = TypeVar("_Task", bound=nn.Module)
_SEED = 0  # of batches
_WARMUP = 100  # steps
_SAVE_EVERY = 100  # steps
_FULL_SIZE_EVERY = 4  # batches of a network that learns from several sizes


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one network.

    Attributes:
        pictures: of the corpus.
        steps: optimizer steps.
        batch: pictures per step.
        lr: highest learning rate.
        cycles: of the cosine schedule, each from the highest rate to 0 (arXiv 1608.03983).
        decay: of the moving average of the weights.
    """

    pictures: int
    steps: int
    batch: int
    lr: float
    cycles: int = 1
    decay: float = 0.995


def train(
    task: _Task,
    make_batch: Callable[[np.random.Generator, int], Batch],
    recipe: Recipe,
    checkpoint: Path,
    device: str = "cpu",
) -> _Task:
    """Minimise the result of ``task`` with AdamW; return the moving average of the weights, on the CPU.

    Args:
        task: from a batch to the loss.
        make_batch: from a random generator and the number of the step, so that each step has its own batch.
        recipe: hyperparameters.
        checkpoint: state of training, saved every 100 steps, from which an interrupted run resumes.
        device: torch's name of it.

    Raises:
        SettingError: the checkpoint is of another recipe.
    """
    task.to(device)
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(recipe.decay))
    matrices, others = (
        [p for p in task.parameters() if (p.ndim > 1) is is_matrix] for is_matrix in (True, False)
    )
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))
    schedule = get_cosine_with_hard_restarts_schedule_with_warmup(
        optimizer, _WARMUP, recipe.steps, recipe.cycles
    )
    parts: dict[str, Any] = {"task": task, "average": average, "optimizer": optimizer, "schedule": schedule}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if saved.get("recipe") != asdict(recipe):
            raise SettingError(f"{checkpoint} is of another recipe: delete it, or choose another --work")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for number in range(schedule.last_epoch, recipe.steps):
        batch = make_batch(np.random.default_rng([_SEED, number]), number)
        loss: Tensor = task({name: values.to(device) for name, values in batch.items()})
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.update_parameters(task)
        if (number + 1) % _SAVE_EVERY == 0:
            print(f"step {number + 1} of {recipe.steps}: loss {loss.item():.4f}", flush=True)
            with atomic_write(checkpoint) as file:
                states = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"recipe": asdict(recipe), **states}, file)
    trained: Any = average.module.cpu()
    return trained


def is_full_size(number: int) -> bool:
    """Whether this batch of a network that learns from two sizes has full size: each fourth has."""
    return number % _FULL_SIZE_EVERY == _FULL_SIZE_EVERY - 1


def in_two_sizes(make_batch: Callable[..., Batch]) -> Callable[..., Batch]:
    """Batches whose images have half the side, except each fourth: that takes less than half the time.

    It is for networks that take any size. Small images show larger things in their receptive field, and full
    size is what the network is used at.
    """

    def batch(*args: Any) -> Batch:
        made, number = make_batch(*args), args[-1]
        if is_full_size(number):
            return made
        return {n: F.avg_pool2d(v, 2) if v.ndim == 4 else v for n, v in made.items()}

    return batch


def save_half(network: nn.Module, file: Path) -> None:
    """Write the weights in half precision."""
    save_file({name: t.half().contiguous() for name, t in network.state_dict().items()}, file)


def pixels(images: Sequence[Pixels]) -> Tensor:
    """uint8 pictures [H, W, 3] to float32 [N, 3, H, W] in 0..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
