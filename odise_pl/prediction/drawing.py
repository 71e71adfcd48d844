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
_PIXELS = 1 << 20  # processed at once


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
    paint(picture, result, names, opacity)
    return np.asarray(picture)


def paint(
    picture: Image.Image, result: PanopticSegmentation, names: Sequence[str], opacity: float = 0.6
) -> None:
    """:func:`overlay` in place, on an RGB picture of the map's size."""
    ids = result.ids.cpu().numpy()
    height, width = ids.shape
    tints = _tints(result.segments, opacity)
    step = max(1, _PIXELS // width)
    for top in range(0, height, step):
        box = (0, top, width, min(top + step, height))
        above = max(0, top - 1)  # one more row, to find the borders of the first
        borders = _borders(ids[above : box[3]])[top - above :]
        pixels, codes = np.array(picture.crop(box)), 256 * _numbers(ids[top : box[3]], result.segments)
        for channel in range(3):
            pixels[..., channel] = tints[:, channel].ravel()[codes + pixels[..., channel]]
        pixels[borders] = 255
        picture.paste(Image.fromarray(pixels), box)
    _write_names(picture, ids, result.segments, names)


def _tints(segments: Sequence[Segment], opacity: float) -> Picture:
    """Lookup tables [segments + 1, 3, 256] of each segment, channel and value; the first is for void."""
    values = np.arange(256, dtype=np.float32)
    tints = [np.stack([values] * 3)]
    for segment in segments:
        tints.append(
            (1 - opacity) * tints[0] + opacity * np.array(segment_color(segment), np.float32)[:, None]
        )
    return np.stack(tints).round().astype(np.uint8)


def _numbers(ids: NDArray[np.int32], segments: Sequence[Segment]) -> NDArray[np.int64]:
    """The number of each pixel's segment, from 1; 0 is void."""
    values = np.array([0, *(segment.id for segment in segments)])
    order = np.argsort(values)
    places = np.searchsorted(values[order].astype(ids.dtype), ids).clip(max=len(order) - 1)
    return np.where(values[order][places] == ids, order[places], 0)


def side_by_side(pictures: Sequence[Picture], gap: int = 8) -> Picture:
    """Pictures of equal height in a row on white."""
    space = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    row: list[Picture] = [pictures[0]]
    for picture in pictures[1:]:
        row += [space, picture]
    return np.concatenate(row, axis=1)


def _borders(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    edges = np.zeros(ids.shape, bool)
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edges[1:] |= ids[1:] != ids[:-1]
    return edges


def _write_names(
    picture: Image.Image, ids: NDArray[np.int32], segments: Sequence[Segment], names: Sequence[str]
) -> None:
    draw = ImageDraw.Draw(picture)
    stride = max(1, round((ids.size / _PIXELS) ** 0.5))  # a sample of a large map is enough
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
