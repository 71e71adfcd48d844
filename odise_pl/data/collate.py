"""Samples of different sizes on one canvas."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from odise_pl.structures import Batch, Sample, Size, Targets

MULTIPLE = 64  # the coarsest features have stride 32 of an image that is encoded at stride 2


def collate(
    samples: Sequence[Sample], skipped: Sequence[str] = (), left_out: int = 0, multiple: int = MULTIPLE
) -> Batch:
    """Put samples on a canvas that holds the largest, rounded up to a multiple of ``multiple``.

    Images are padded with zeros and masks with False, to the right and below.
    """
    canvas = canvas_size([_size(sample) for sample in samples], multiple)
    return Batch(
        images=_images(samples, canvas),
        valid_sizes=tuple(_size(sample) for sample in samples),
        targets=tuple(_padded(sample.targets, canvas) for sample in samples),
        image_ids=tuple(sample.image_id for sample in samples),
        keys=tuple(sample.key for sample in samples),
        captions=tuple(sample.captions for sample in samples),
        original_sizes=tuple(sample.original_size for sample in samples),
        truths=tuple(sample.truth for sample in samples),
        skipped=tuple(skipped),
        words=tuple(sample.words for sample in samples),
        labelled=tuple(sample.labelled for sample in samples),
        left_out=left_out,
        generated_captions=tuple(sample.generated_caption for sample in samples),
        image_suffixes=tuple(sample.image_suffix for sample in samples),
    )


def canvas_size(sizes: Sequence[Size], multiple: int = MULTIPLE) -> Size:
    """The smallest canvas for images of these sizes with sides of ``multiple`` times one or more."""
    height, width = (max((size[axis] for size in sizes), default=1) for axis in (0, 1))
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def _size(sample: Sample) -> Size:
    return sample.image.shape[-2], sample.image.shape[-1]


def _images(samples: Sequence[Sample], canvas: Size) -> torch.Tensor:
    images = torch.zeros(len(samples), 3, *canvas)
    for image, sample in zip(images, samples, strict=True):
        height, width = _size(sample)
        image[:, :height, :width] = sample.image
    return images


def _padded(targets: Targets, canvas: Size) -> Targets:
    height, width = targets.masks.shape[-2:]
    if (height, width) == canvas:
        return targets
    masks = torch.zeros(len(targets.masks), *canvas, dtype=torch.bool)
    masks[:, :height, :width] = targets.masks
    return Targets(targets.labels, masks)
