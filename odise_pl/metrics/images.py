"""Checks that the metrics share: images come in pairs of prediction and truth, of one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def image_names(num_predictions: int, num_truths: int, image_ids: Sequence[int] | None) -> list[str]:
    """How messages name the images of an update; ValueError when the counts differ."""
    num_ids = num_truths if image_ids is None else len(image_ids)
    if not num_predictions == num_truths == num_ids:
        counts = f"{num_predictions} predictions, {num_truths} truths and {num_ids} image ids"
        raise ValueError(f"an update needs one of each per image, found {counts}")
    if image_ids is None:
        return [f"image number {position} of the batch" for position in range(num_truths)]
    return [f"image {image_id}" for image_id in image_ids]


def check_label_map(labels: Tensor, where: str) -> None:
    """ValueError unless ``labels`` is an integer tensor [H, W]."""
    integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 2 or not integral:
        raise ValueError(
            f"{where}: the map must be integer [H, W], found {labels.dtype} {list(labels.shape)}"
        )


def check_same_size(prediction: Tensor, truth: Tensor, image: str) -> None:
    """ValueError unless the last two dimensions (height, width) are equal."""
    size, true_size = tuple(prediction.shape[-2:]), tuple(truth.shape[-2:])
    if size != true_size:
        raise ValueError(
            f"the prediction of {image} has size {size}, its truth {true_size} (height, width): "
            "resize the prediction to the size of the truth"
        )
