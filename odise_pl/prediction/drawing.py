"""Panoptic maps as pictures."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    hue = (0.38 + segment.category * _HUE_STEP) % 1
    light, saturation = (0.63 - 0.22 * (segment.id * _HUE_STEP % 1), 0.7) if segment.isthing else (0.6, 0.45)
    red, green, blue = colorsys.hls_to_rgb(hue, light, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


@cache
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


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
    picture: Image.Image,
    result: PanopticSegmentation,
    names: Sequence[str],
    opacity: float = 0.6,
    font_size: int | None = None,
) -> Image.Image:
    """:func:`overlay` of an RGB picture of the map's size; None: a font size that suits the picture."""
    ids = result.ids.cpu().numpy()
    colors = np.zeros((1 + max([int(ids.max()), *(s.id for s in result.segments)]), 3), np.uint8)
    for segment in result.segments:
        colors[segment.id] = segment_color(segment)
    gray = picture.convert("L").convert("RGB")  # the picture's own colours would muddy those of the classes
    tinted = Image.blend(gray, Image.fromarray(colors[ids]), opacity)
    pixels = np.where(ids[..., None] > 0, np.asarray(tinted), np.asarray(picture))
    side = math.sqrt(ids.size)
    pixels[_borders(ids, max(1, round(side / 250)))] = 255
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
    listed = {segment.id: segment for segment in segments}
    for number, place in _places(ids).items():
        segment = listed.get(number)
        name = names[segment.category] if segment else ""
        half = (0.5 * font.getlength(name) + 0.45 * size, 0.7 * size)
        box = _free_box(place, half, picture.size, placed) if name else None
        if segment and box:
            placed.append(box)
            _write_label(picture, box, name, font, segment_color(segment))


@dataclass(frozen=True)
class _Place:
    """Where a segment is: its area, its upper and lower end, and the point farthest from its border."""

    area: float
    top: float
    bottom: float
    x: float
    y: float


def _places(ids: NDArray[np.int32]) -> dict[int, _Place]:
    """Places of the segments that are not tiny, the largest first."""
    stride = max(1, math.ceil(math.sqrt(ids.size / _SAMPLE)))  # distances in a large map would take long
    sample = ids[::stride, ::stride]
    numbers, flat, counts = np.unique(sample, return_inverse=True, return_counts=True)
    indices = flat.reshape(sample.shape)
    boxes = find_objects(indices + 1)
    places = {}
    for index in np.argsort(-counts, kind="stable"):
        if numbers[index] and counts[index] >= _SMALLEST * sample.size:
            rows, columns = boxes[index]
            depth = distance_transform_edt(np.pad(indices[rows, columns] == index, 1))
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            y, x = stride * (rows.start + row - 0.5), stride * (columns.start + column - 0.5)
            area = float(counts[index] * stride**2)
            places[int(numbers[index])] = _Place(area, stride * rows.start, stride * rows.stop, x, y)
    return places


def _free_box(
    place: _Place, half: tuple[float, float], size: tuple[int, int], placed: Sequence[Box]
) -> Box | None:
    """A label's box in the picture, clear of others: in the segment, below or above it; None: no room."""
    x = min(max(place.x, half[0] + 1), size[0] - half[0] - 1)
    outside = (place.bottom + half[1], place.top - half[1])
    inside = tuple(place.y + 2.1 * step * half[1] for step in (0, -1, 1))
    covered = 4 * half[0] * half[1] > 0.7 * place.area
    for y in (*outside, *inside) if covered else (*inside, *outside):
        box = (x - half[0], y - half[1], x + half[0], y + half[1])
        if box[1] >= 0 and box[3] <= size[1] and not any(_overlap(box, other) for other in placed):
            return box
    return None


def _overlap(first: Box, second: Box) -> bool:
    return all(first[i] < second[i + 2] and second[i] < first[i + 2] for i in (0, 1))


def _write_label(
    picture: Image.Image, box: Box, name: str, font: ImageFont.FreeTypeFont, color: tuple[int, int, int]
) -> None:
    """White on a dark pill with a rim in the colour of the segment."""
    left, top, right, bottom = (round(side) for side in box)
    scale = max(1, 160 // (bottom - top))  # larger first, for smooth corners
    size = (scale * (right - left), scale * (bottom - top))
    for inset, fill in ((0, color), (max(scale, size[1] // 13), _LABEL)):
        mask = Image.new("L", size)
        corners = (inset, inset, size[0] - 1 - inset, size[1] - 1 - inset)
        ImageDraw.Draw(mask).rounded_rectangle(corners, size[1] // 3 - inset, 255)
        picture.paste(fill, (left, top), mask.reduce(scale))
    middle = ((left + right) / 2, (top + bottom) / 2)
    ImageDraw.Draw(picture).text(middle, name, (255, 255, 255), font, anchor="mm")
