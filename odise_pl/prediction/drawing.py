"""Panoptic maps as pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from odise_pl.structures import PanopticSegmentation, Segment

Picture = NDArray[np.uint8]
# steps of the golden ratio keep successive hues apart
_HUE_STEP = 0.61803398875


def segment_color(segment: Segment) -> tuple[int, int, int]:
    """A colour per class; segments of one class differ in brightness."""
    hue = segment.category * _HUE_STEP % 1
    value = 0.95 - 0.45 * (segment.id * _HUE_STEP % 1 if segment.isthing else 0)
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    image: Tensor, result: PanopticSegmentation, names: Sequence[str], opacity: float = 0.6
) -> Picture:
    """Draw segments over an image, outlined and named; void pixels stay unchanged.

    Args:
        image: [3, H, W] in 0..1; it is resized to the map.
        result: map and segments.
        names: one per class.
        opacity: of the colours, 0..1.

    Returns:
        uint8 [H, W, 3] of the map's size.
    """
    size = (result.ids.shape[1], result.ids.shape[0])
    array = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(array).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(paint(picture, result, names, opacity))


def paint(
    picture: Image.Image, result: PanopticSegmentation, names: Sequence[str], opacity: float = 0.6
) -> Image.Image:
    """:func:`overlay` of an RGB picture of the map's size."""
    ids = result.ids.cpu().numpy()
    colors = np.zeros((1 + max([int(ids.max()), *(s.id for s in result.segments)]), 3), np.uint8)
    for segment in result.segments:
        colors[segment.id] = segment_color(segment)
    tinted = Image.blend(picture, Image.fromarray(colors[ids]), opacity)
    pixels = np.where(ids[..., None] > 0, np.asarray(tinted), np.asarray(picture))
    pixels[_borders(ids)] = 255
    painted = Image.fromarray(pixels)
    _write_names(painted, ids, result.segments, names)
    return painted


def side_by_side(pictures: Sequence[Picture], gap: int = 8) -> Picture:
    """Pictures of equal height in a row on white."""
    row = [np.pad(picture, ((0, 0), (0, gap), (0, 0)), constant_values=255) for picture in pictures]
    return np.concatenate(row, axis=1)[:, :-gap]


def _borders(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    edges = np.zeros(ids.shape, bool)
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edges[1:] |= ids[1:] != ids[:-1]
    return edges


def _write_names(
    picture: Image.Image, ids: NDArray[np.int32], segments: Sequence[Segment], names: Sequence[str]
) -> None:
    draw = ImageDraw.Draw(picture)
    stride = max(1, round((ids.size / 1e6) ** 0.5))  # a sample of a large map is enough
    sample = ids[::stride, ::stride]
    for segment in segments:
        rows, columns = np.nonzero(sample == segment.id)
        if len(rows) < 64:  # no room for a word
            continue
        middle = int(np.argmin(np.abs(rows - rows.mean()) + np.abs(columns - columns.mean())))
        draw.text(
            (float(stride * columns[middle]), float(stride * rows[middle])),
            names[segment.category],
            (255, 255, 255),
            anchor="mm",
            stroke_width=2,
            stroke_fill=(0, 0, 0),
        )
