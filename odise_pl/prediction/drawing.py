"""Panoptic maps as pictures."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt, find_objects
from torch import Tensor

from odise_pl.structures import PanopticSegmentation, Segment

Picture = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom
# steps of the golden ratio keep successive hues apart
_HUE_STEP = 0.61803398875
_LABEL = (24, 29, 38)
_SAMPLE = 1 << 16  # pixels of the map that are enough to place its labels
_SMALLEST = 0.003  # share of the map that a segment needs to have a label


def segment_color(segment: Segment) -> tuple[int, int, int]:
    """A colour per class, paler for stuff; segments of one class differ in brightness."""
    hue = segment.category * _HUE_STEP % 1
    light, saturation = (0.63 - 0.22 * (segment.id * _HUE_STEP % 1), 0.78) if segment.isthing else (0.6, 0.45)
    red, green, blue = colorsys.hls_to_rgb(hue, light, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


@cache
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def overlay(
    image: Tensor, result: PanopticSegmentation, names: Sequence[str], opacity: float = 0.55
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
    picture: Image.Image,
    result: PanopticSegmentation,
    names: Sequence[str],
    opacity: float = 0.55,
    font_size: int | None = None,
) -> Image.Image:
    """:func:`overlay` of an RGB picture of the map's size; None: a font size that suits the picture."""
    ids = result.ids.cpu().numpy()
    colors = np.zeros((1 + max([int(ids.max()), *(s.id for s in result.segments)]), 3), np.uint8)
    for segment in result.segments:
        colors[segment.id] = segment_color(segment)
    tinted = Image.blend(picture, Image.fromarray(colors[ids]), opacity)
    pixels = np.where(ids[..., None] > 0, np.asarray(tinted), np.asarray(picture))
    side = math.sqrt(ids.size)
    pixels[_borders(ids, max(1, round(side / 400)))] = 255
    painted = Image.fromarray(pixels)
    _write_names(painted, ids, result.segments, names, font_size or max(10, round(side / 36)))
    return painted


def side_by_side(pictures: Sequence[Picture], gap: int = 8) -> Picture:
    """Pictures of equal height in a row on white."""
    row = [np.pad(picture, ((0, 0), (0, gap), (0, 0)), constant_values=255) for picture in pictures]
    return np.concatenate(row, axis=1)[:, :-gap]


def _borders(ids: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """Pixels at most ``width`` to the right of or below another segment."""
    edges = np.zeros(ids.shape, bool)
    edges[:, width:] |= ids[:, width:] != ids[:, :-width]
    edges[width:] |= ids[width:] != ids[:-width]
    return edges


def _write_names(
    picture: Image.Image,
    ids: NDArray[np.int32],
    segments: Sequence[Segment],
    names: Sequence[str],
    size: int,
) -> None:
    """Label each segment where it is widest, the largest first, if there is room."""
    font, placed = load_font(size), list[Box]()
    labels = {segment.id: names[segment.category] for segment in segments}
    for number, middle in _widest_places(ids).items():
        name = labels.get(number)
        if name:
            half = (0.5 * font.getlength(name) + 0.45 * size, 0.75 * size)
            box = _free_place(middle, half, picture.size, placed)
            if box is not None:
                placed.append(box)
                _write_label(picture, box, name, font)


def _widest_places(ids: NDArray[np.int32]) -> dict[int, tuple[float, float]]:
    """Of each segment that is not tiny, the largest first: x and y of the pixel farthest from its border."""
    stride = max(1, math.ceil(math.sqrt(ids.size / _SAMPLE)))  # distances in a large map would take long
    numbers, flat, counts = np.unique(ids[::stride, ::stride], return_inverse=True, return_counts=True)
    sample = flat.reshape(ids[::stride, ::stride].shape)
    boxes = find_objects(sample + 1)
    places = {}
    for index in np.argsort(-counts, kind="stable"):
        if numbers[index] and counts[index] >= _SMALLEST * sample.size:
            inside = distance_transform_edt(np.pad(sample[boxes[index]] == index, 1))
            row, column = np.unravel_index(inside.argmax(), inside.shape)
            top, left = (side.start - 0.5 for side in boxes[index])
            places[int(numbers[index])] = (stride * (left + column), stride * (top + row))
    return places


def _free_place(
    middle: tuple[float, float], half: tuple[float, float], size: tuple[int, int], placed: Sequence[Box]
) -> Box | None:
    """The box of a label around a point, moved into the picture and past other labels; None: no room."""
    x = min(max(middle[0], half[0] + 1), size[0] - half[0] - 1)
    for step in (0, -1, 1, -2, 2):
        y = min(max(middle[1] + 2.1 * step * half[1], half[1] + 1), size[1] - half[1] - 1)
        box = (x - half[0], y - half[1], x + half[0], y + half[1])
        if not any(_overlap(box, other) for other in placed):
            return box
    return None


def _overlap(first: Box, second: Box) -> bool:
    return all(first[i] < second[i + 2] and second[i] < first[i + 2] for i in (0, 1))


def _write_label(picture: Image.Image, box: Box, name: str, font: ImageFont.FreeTypeFont) -> None:
    """White on a dark, slightly transparent pill."""
    left, top, right, bottom = (round(side) for side in box)
    large = Image.new("L", (4 * (right - left), 4 * (bottom - top)))  # four times the size for smooth corners
    ImageDraw.Draw(large).rounded_rectangle((0, 0, large.width - 1, large.height - 1), large.height // 3, 215)
    picture.paste(_LABEL, (left, top), large.reduce(4))
    middle = ((left + right) / 2, (top + bottom) / 2)
    ImageDraw.Draw(picture).text(middle, name, (255, 255, 255), font, anchor="mm")
