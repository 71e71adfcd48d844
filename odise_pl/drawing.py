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
# successive hues a golden ratio apart never come close to each other
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
    """Segments over the image, outlined and named; void stays as it is.

    Args:
        image: [3, H, W] in 0..1, of any size; it is resized to the map.
        result: map and segments.
        names: one per class.
        opacity: of the colours, 0..1.

    Returns:
        uint8 [H, W, 3] of the map's size.
    """
    ids = result.ids.cpu().numpy()
    pixels = _as_picture(image, (ids.shape[1], ids.shape[0])).astype(np.float32)
    for segment in result.segments:
        mask = ids == segment.id
        pixels[mask] = (1 - opacity) * pixels[mask] + opacity * np.array(segment_color(segment), np.float32)
    pixels[_borders(ids)] = 255
    return _with_names(pixels.round().astype(np.uint8), ids, result.segments, names)


def side_by_side(pictures: Sequence[Picture], gap: int = 8) -> Picture:
    """Pictures of one height in a row on white."""
    space = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    row: list[Picture] = [pictures[0]]
    for picture in pictures[1:]:
        row += [space, picture]
    return np.concatenate(row, axis=1)


def _as_picture(image: Tensor, size: tuple[int, int]) -> Picture:
    array = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR))


def _borders(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    edges = np.zeros(ids.shape, bool)
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edges[1:] |= ids[1:] != ids[:-1]
    return edges


def _with_names(
    picture: Picture, ids: NDArray[np.int32], segments: Sequence[Segment], names: Sequence[str]
) -> Picture:
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for segment in segments:
        rows, columns = np.nonzero(ids == segment.id)
        if len(rows) < 64:  # no room for a word
            continue
        middle = int(np.argmin(np.abs(rows - rows.mean()) + np.abs(columns - columns.mean())))
        place = (float(columns[middle]), float(rows[middle]))
        draw.text(
            place,
            names[segment.category],
            (255, 255, 255),
            anchor="mm",
            stroke_width=2,
            stroke_fill=(0, 0, 0),
        )
    return np.asarray(canvas)
