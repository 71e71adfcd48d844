"""Collate samples of different sizes into a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from odise_pl.structures import CANVAS_MULTIPLE, Batch, Sample, Size, Targets


def collate(samples: Sequence[Sample], skipped: Sequence[str] = (), number: int = -1) -> Batch:
    """Pad samples with zeros, to the right and below, to a canvas that holds the largest of them.

    Args:
        samples: may be empty.
        skipped: a reason for each sample that is missing or replaced.
        number: see :class:`Batch`.
    """
    sizes = tuple((sample.image.shape[-2], sample.image.shape[-1]) for sample in samples)
    canvas = _canvas_size(sizes)
    dtype = samples[0].image.dtype if samples else torch.uint8
    pixels = torch.zeros(len(samples), 3, *canvas, dtype=dtype)
    for image, sample, (height, width) in zip(pixels, samples, sizes, strict=True):
        image[:, :height, :width] = sample.image
    return Batch(
        pixels=pixels,
        valid_sizes=sizes,
        targets=tuple(Targets(s.targets.labels, _pad(s.targets.masks, canvas)) for s in samples),
        image_ids=tuple(sample.image_id for sample in samples),
        keys=tuple(sample.key for sample in samples),
        captions=tuple(sample.captions for sample in samples),
        original_sizes=tuple(sample.original_size for sample in samples),
        truths=tuple(sample.truth for sample in samples),
        skipped=tuple(skipped),
        words=tuple(sample.words for sample in samples),
        labelled=tuple(sample.labelled for sample in samples),
        generated_captions=tuple(sample.generated_caption for sample in samples),
        image_suffixes=tuple(sample.image_suffix for sample in samples),
        number=number,
    )


def _canvas_size(sizes: Sequence[Size]) -> Size:
    """The smallest size that holds all of these, in positive multiples of 64."""
    height, width = (max((size[axis] for size in sizes), default=1) for axis in (0, 1))
    return -(-height // CANVAS_MULTIPLE) * CANVAS_MULTIPLE, -(-width // CANVAS_MULTIPLE) * CANVAS_MULTIPLE


def _pad(tensor: torch.Tensor, canvas: Size) -> torch.Tensor:
    height, width = tensor.shape[-2:]
    if (height, width) == canvas:
        return tensor
    return pad(tensor, (0, canvas[1] - width, 0, canvas[0] - height))
