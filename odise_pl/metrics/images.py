"""Checks of maps and sizes that all metrics share."""

from __future__ import annotations

import torch
from torch import Tensor


def check_label_map(labels: Tensor, where: str) -> None:
    """Raise ValueError unless ``labels`` is an integer tensor [H, W]."""
    integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 2 or not integral:
        raise ValueError(
            f"{where}: the map must be integer [H, W], found {labels.dtype} {list(labels.shape)}"
        )


def check_same_size(prediction: Tensor, truth: Tensor, image: str) -> None:
    """Raise ValueError unless the last two dimensions (height, width) are equal."""
    size, true_size = tuple(prediction.shape[-2:]), tuple(truth.shape[-2:])
    if size != true_size:
        raise ValueError(
            f"the prediction of {image} has size {size}, its truth {true_size} (height, width): "
            "resize the prediction to the size of the truth"
        )
