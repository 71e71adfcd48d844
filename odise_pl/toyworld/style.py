"""Styles of pictures of the small world: sizes, light, colours, noise."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """Statistics of a set of pictures; ranges are uniform.

    Attributes:
        sides: height and width in pixels, each drawn from this range in steps of 16.
        objects: fewest and most things.
        extent: half the size of a thing, as a share of the shorter side of the picture.
        close_up: share of pictures of a single large thing.
        close_extent: like ``extent``, for close-ups.
        indoor: share of pictures of rooms.
        light: brightness, 1 as drawn.
        saturation: of colours, 1 as drawn, 0 gray.
        shade: contrast of the side light on things.
        texture: contrast of the surface of things.
        grain: standard deviation of sensor noise, in a range of 0..1.
    """

    sides: tuple[int, int] = (128, 160)
    objects: tuple[int, int] = (2, 5)
    extent: Range = (0.11, 0.24)
    close_up: float = 0.0
    close_extent: Range = (0.28, 0.46)
    indoor: float = 0.3
    light: Range = (0.9, 1.05)
    saturation: Range = (0.85, 1.1)
    shade: Range = (0.1, 0.3)
    texture: Range = (0.0, 0.06)
    grain: Range = (0.0, 0.015)


# The labelled sets, the stand-ins for COCO.
PLAIN = Style()
# The open set, the stand-in for ADE20K: more and smaller things, dimmer, paler and grainier pictures.
OPEN = Style(
    objects=(3, 7),
    extent=(0.09, 0.22),
    indoor=0.45,
    light=(0.75, 1.0),
    saturation=(0.6, 0.95),
    shade=(0.2, 0.4),
    texture=(0.03, 0.09),
    grain=(0.01, 0.025),
)
