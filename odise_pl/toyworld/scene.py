"""Scenes of the small world: layout, painted picture and panoptic map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from odise_pl.toyworld.shapes import Points, draw, outline
from odise_pl.toyworld.stuff import STUFF, Stuff, noise
from odise_pl.toyworld.style import Style
from odise_pl.toyworld.things import COLOURS, THINGS, Thing

Picture = NDArray[np.float32]
T = TypeVar("T")
_TRIES = 12  # attempts to find a free place
_OVERLAP = 0.35  # how much of a thing's box another may cover
_FEWEST_PIXELS = 20  # a thing with fewer visible pixels counts as hidden


@dataclass(frozen=True)
class Placed:
    """A thing in a scene: its id in the map, colour by name, and box (left, top, right, bottom) in pixels."""

    id: int
    thing: Thing
    colour: str
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        """x, y in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """A painted scene.

    Attributes:
        image: uint8 [H, W, 3].
        ids: int32 [H, W], 0 where nothing is labelled (the visible rest of an almost hidden thing).
        things: the visible ones, from back to front.
        stuff: id and category of the visible background regions, from top to bottom.
    """

    image: NDArray[np.uint8]
    ids: NDArray[np.int32]
    things: tuple[Placed, ...]
    stuff: tuple[tuple[int, Stuff], ...]


def pick(choices: Sequence[T], random: np.random.Generator) -> T:
    """One of the choices, uniformly."""
    return choices[int(random.integers(len(choices)))]


@dataclass(frozen=True)
class _Band:
    """A background region: its id, category, and mean rows (first, one past the last)."""

    id: int
    stuff: Stuff
    rows: tuple[int, int]


def paint_scene(random: np.random.Generator, style: Style, novel: bool = True) -> Scene:
    """One scene, determined by the state of the generator.

    Args:
        random: generator of all random numbers.
        style: what pictures look like.
        novel: whether novel categories may occur.
    """
    height, width = (16 * int(random.integers(style.sides[0] // 16, style.sides[1] // 16 + 1)) for _ in "hw")
    image, ids, bands = _background((height, width), random, style, novel)
    things = _place_things(image, ids, bands, random, style, novel)
    pixels = np.bincount(ids.ravel(), minlength=len(bands) + len(things) + 1)
    hidden = [placed.id for placed in things if pixels[placed.id] < _FEWEST_PIXELS]
    if hidden:
        ids[np.isin(ids, hidden)] = 0
    return Scene(
        _exposed(image, random, style),
        ids,
        tuple(placed for placed in things if placed.id not in hidden),
        tuple((band.id, band.stuff) for band in bands if pixels[band.id]),
    )


def _background(
    size: tuple[int, int], random: np.random.Generator, style: Style, novel: bool
) -> tuple[Picture, NDArray[np.int32], list[_Band]]:
    """The painted background, its map, and its regions from top to bottom."""
    kinds, borders = _layout(size, random, style, novel)
    image, ids = np.zeros((*size, 3), np.float32), np.zeros(size, np.int32)
    y = np.arange(size[0])[:, None]
    edges = [np.zeros(size[1]), *borders, np.full(size[1], size[0])]
    bands = []
    for number, stuff in enumerate(kinds, start=1):
        upper, lower = edges[number - 1], edges[number]
        top, whole = int(upper.min()), int(np.ceil(upper.max()))
        texture = stuff.texture((size[0] - top, size[1]), random)
        # down to the bottom, where the next region covers it: slices are much faster than masks
        image[whole:], ids[whole:] = texture[whole - top :], number
        border = y[top:whole] >= upper
        image[top:whole][border] = texture[: whole - top][border]
        ids[top:whole][border] = number
        bands.append(_Band(number, stuff, (int(upper.mean()), int(lower.mean()))))
    return image, ids, bands


def _layout(
    size: tuple[int, int], random: np.random.Generator, style: Style, novel: bool
) -> tuple[list[Stuff], list[NDArray[np.float64]]]:
    """Categories from top to bottom, and the row of each border between them in every column."""

    def one(place: str) -> Stuff:
        return pick([s for s in STUFF if s.place == place and (novel or not s.novel)], random)

    height, width = size
    horizon = height * random.uniform(0.4, 0.65)
    if random.random() < style.indoor:
        slope = np.linspace(-1, 1, width) * random.uniform(-0.06, 0.06) * height
        return [one("wall"), one("floor")], [horizon + slope]
    ground = horizon + _wave(width, random, 0.015 * height)
    if random.random() < 0.3:
        return [one("sky"), one("ground")], [ground]
    far = one("far")
    rough = {"mountain": 0.07, "forest": 0.03}.get(far.name, 0.0) * height
    ridge = horizon - height * random.uniform(0.15, 0.25) + _wave(width, random, rough)
    return [one("sky"), far, one("ground")], [np.minimum(ridge, ground - 3), ground]


def _wave(width: int, random: np.random.Generator, height: float) -> NDArray[np.float64]:
    wave: NDArray[np.float64] = noise((1, width), 32, random)[0].astype(np.float64)
    return height * np.clip(wave, -2, 2)


def _place_things(
    image: Picture,
    ids: NDArray[np.int32],
    bands: Sequence[_Band],
    random: np.random.Generator,
    style: Style,
    novel: bool,
) -> list[Placed]:
    known = [thing for thing in THINGS if novel or not thing.novel]
    close = random.random() < style.close_up
    count = 1 if close else int(random.integers(style.objects[0], style.objects[1] + 1))
    boxes: list[tuple[Thing, tuple[float, float, float, float]]] = []
    for _ in range(count):
        thing = pick(known, random)
        half = min(ids.shape) * random.uniform(*(style.close_extent if close else style.extent))
        box = _free_box(thing, half, ids.shape, bands, [box for _, box in boxes], random)
        if box is not None:
            boxes.append((thing, box))
    placed = []
    # things lower in the picture are nearer and hide those behind
    for number, (thing, box) in enumerate(sorted(boxes, key=lambda pair: pair[1][3]), start=len(bands) + 1):
        colour = pick(thing.colours, random)
        _paint_thing(image, ids, number, thing, colour, box, random, style)
        placed.append(Placed(number, thing, colour, box))
    return placed


def _free_box(
    thing: Thing,
    half: float,
    size: tuple[int, ...],
    bands: Sequence[_Band],
    taken: Sequence[tuple[float, float, float, float]],
    random: np.random.Generator,
) -> tuple[float, float, float, float] | None:
    """A box where a thing covers only a little of others; None if there is none."""
    height, width = size
    first, last = _rows_for(thing, bands, random)
    wide = half * random.uniform(0.85, 1.1)
    for _ in range(_TRIES):
        x = random.uniform(min(wide, width / 2), max(width - wide, width / 2))
        # the foot of a standing thing, or the middle of a floating one
        foot = random.uniform(first, last) + (half if thing.place == "air" else 0)
        y = min(max(foot - half, half), max(height - half, half))
        box = (x - wide, y - half, x + wide, y + half)
        if all(_covered(box, other) < _OVERLAP for other in taken):
            return box
    return None


def _rows_for(thing: Thing, bands: Sequence[_Band], random: np.random.Generator) -> tuple[int, int]:
    if thing.place == "water":
        for band in bands:
            if band.stuff.name == "sea":
                return band.rows[0], band.rows[1]
    upper = thing.place == "air" or (thing.place == "wall" and random.random() < 0.5)
    band = bands[0] if upper else bands[-1]
    return band.rows[0] + (0 if upper else 4), band.rows[1]


def _covered(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection as a share of the smaller box."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return wide * high / min(areas)


def _paint_thing(
    image: Picture,
    ids: NDArray[np.int32],
    number: int,
    thing: Thing,
    colour: str,
    box: tuple[float, float, float, float],
    random: np.random.Generator,
    style: Style,
) -> None:
    left, top = int(np.floor(box[0])) - 2, int(np.floor(box[1])) - 2
    size = (int(np.ceil(box[3])) + 2 - top, int(np.ceil(box[2])) + 2 - left)
    corner = np.array([left, top])
    own = np.clip(np.array(COLOURS[colour]) + random.uniform(-18, 18, 3), 0, 255)
    move = _affine(thing, box, random)
    polygons = [
        (move(outline(shape, numbers)) - corner, _paint(paint, own)) for shape, paint, numbers in thing.parts
    ]
    tile, cover = draw(polygons, size)
    tile = tile * _light(size, random, style)[..., None]
    # the part of the tile inside the picture
    rows, columns = (
        slice(max(0, -start), min(extent, whole - start))
        for start, extent, whole in zip((top, left), size, ids.shape, strict=True)
    )
    there = (slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop))
    alpha = cover[rows, columns]
    image[there] += alpha[..., None] * (tile[rows, columns] - image[there])
    ids[there][alpha >= 0.5] = number


def _affine(thing: Thing, box: tuple[float, ...], random: np.random.Generator) -> Callable[[Points], Points]:
    """The map from a drawing's coordinates to pixels: randomly mirrored and rotated, scaled into the box."""
    angle = np.deg2rad(random.uniform(-thing.turn, thing.turn))
    mirror = -1.0 if random.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.array([box[2] - box[0], box[3] - box[1]]) / 2
    centre = np.array([box[0], box[1]]) + half
    matrix = (turn * np.array([mirror, 1.0])).T * half

    def move(points: Points) -> Points:
        return points @ matrix + centre

    return move


def _paint(paint: str | float, own: NDArray[np.float64]) -> tuple[int, int, int]:
    rgb = np.array(COLOURS[paint]) if isinstance(paint, str) else np.clip(own * paint, 0, 255)
    red, green, blue = rgb.astype(int).tolist()
    return red, green, blue


def _light(size: tuple[int, int], random: np.random.Generator, style: Style) -> Picture:
    """Light from one side and a rough surface: [H, W] around 1."""
    angle, strength = random.uniform(0, 2 * np.pi), random.uniform(*style.shade)
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    x = np.linspace(-1, 1, size[1], dtype=np.float32) * np.float32(np.cos(angle))
    rough = np.float32(random.uniform(*style.texture)) * noise(size, 8, random)
    return 1 + np.float32(strength) * (x + y) + rough


def _exposed(image: Picture, random: np.random.Generator, style: Style) -> NDArray[np.uint8]:
    """Apply brightness, saturation and grain; convert to bytes."""
    light, saturation, grain = (
        np.float32(random.uniform(*r)) for r in (style.light, style.saturation, style.grain)
    )
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))  # short innermost axes are slow
    gray = (planes[0] + planes[1] + planes[2]) / 3
    planes = light * (gray + saturation * (planes - gray)) + grain * noise(image.shape[:2], 1, random)
    planes = (np.clip(planes, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))
