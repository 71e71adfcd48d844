"""Outlines of simple shapes, and anti-aliased drawing."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
_ROUND = 36  # corners of a full ellipse
SUPERSAMPLE = 3


@cache
def outline(shape: str, numbers: tuple[float, ...]) -> Points:
    """The corners [n, 2] of a shape, x to the right and y downwards.

    Shapes and their numbers: ``polygon`` x y x y ...; ``box`` left top right bottom; ``ellipse`` centre x, y
    and radii; ``dome`` the upper half of an ellipse; ``line`` from x, y to x, y, width; ``arc`` centre x, y,
    radius, from and to in degrees clockwise from the right, width.
    """
    if shape == "polygon":
        return np.array(numbers).reshape(-1, 2)
    if shape == "box":
        left, top, right, bottom = numbers
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if shape in ("ellipse", "dome"):
        x, y, wide, high = numbers
        first, last = (0, 360) if shape == "ellipse" else (180, 360)
        return np.array([x, y]) + _circle(first, last) * (wide, high)
    if shape == "line":
        return _line(*numbers)
    if shape == "arc":
        x, y, radius, start, end, width = numbers
        circle = _circle(start, end)
        return np.array([x, y]) + np.concatenate(
            [circle * (radius + width / 2), circle[::-1] * (radius - width / 2)]
        )
    raise ValueError(f"unknown shape {shape}")


def _circle(first: float, last: float) -> Points:
    count = max(3, round(_ROUND * (last - first) / 360)) + 1
    angles = np.deg2rad(np.linspace(first, last, count))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _line(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    length = float(np.hypot(x1 - x0, y1 - y0))
    across = np.array([y0 - y1, x1 - x0]) / length * width / 2
    start, end = np.array([x0, y0]), np.array([x1, y1])
    return np.array([start + across, end + across, end - across, start - across])


def draw(
    polygons: list[tuple[Points, tuple[int, int, int]]], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw polygons from back to front with anti-aliased edges.

    Args:
        polygons: corners in pixels, and colour 0..255.
        size: height, width in pixels.

    Returns:
        colour [H, W, 3] in 0..1 and coverage [H, W] in 0..1.
    """
    height, width = size
    big = (width * SUPERSAMPLE, height * SUPERSAMPLE)
    # fill the background with the first colour, so that no other bleeds into the edges
    picture, cover = Image.new("RGB", big, polygons[0][1]), Image.new("L", big)
    painter, coverer = ImageDraw.Draw(picture), ImageDraw.Draw(cover)
    for points, colour in polygons:
        corners = (points * SUPERSAMPLE).ravel().tolist()
        painter.polygon(corners, fill=colour)
        coverer.polygon(corners, fill=255)
    return tuple(  # type: ignore[return-value]
        np.asarray(layer.reduce(SUPERSAMPLE), np.float32) / np.float32(255) for layer in (picture, cover)
    )
