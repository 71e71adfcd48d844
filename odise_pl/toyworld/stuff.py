"""The background categories of the small world and their textures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]
Picture = NDArray[np.float32]  # [H, W, 3] in 0..1, or [H, W] around 0
_SHEET = 640  # side of the noise sheets


@dataclass(frozen=True)
class Stuff:
    """A background category.

    Attributes:
        name: ordinary English name.
        texture: size and generator to a picture [H, W, 3] in 0..1.
        place: ``sky``, ``far`` (between sky and ground), ``ground``, ``wall`` or ``floor``.
        synonyms: other names.
        novel: never labelled in the training set.
    """

    name: str
    texture: Callable[[Size, np.random.Generator], Picture]
    place: str
    synonyms: tuple[str, ...] = ()
    novel: bool = False


@cache
def _sheet(period: int) -> Picture:
    """Smooth noise of unit variance whose features are ``period`` pixels wide."""
    random = np.random.default_rng(period)
    cells = -(-_SHEET // period) + 1
    grid = Image.fromarray(random.standard_normal((cells, cells)).astype(np.float32))
    smooth = np.asarray(grid.resize((_SHEET, _SHEET), Image.Resampling.BICUBIC))
    return (smooth / smooth.std()).astype(np.float32)


def noise(size: Size, period: int, random: np.random.Generator) -> Picture:
    """Smooth noise [H, W] of unit variance, ``period`` pixels wide: a random crop of a fixed sheet."""
    top, left = (int(random.integers(0, _SHEET - side)) for side in size)
    return _sheet(period)[top : top + size[0], left : left + size[1]]


def _colour(random: np.random.Generator, *rgb: float, spread: float = 0.04) -> NDArray[np.float32]:
    return (np.array(rgb) / 255 + random.uniform(-spread, spread, 3)).astype(np.float32)


def _mix(first: NDArray[np.float32], second: NDArray[np.float32], share: Picture) -> Picture:
    """``first`` where ``share`` [H, W] is 0, ``second`` where it is 1."""
    return first + share[..., None] * (second - first)


def _plain(colour: NDArray[np.float32], light: Picture) -> Picture:
    return colour * (1 + light)[..., None]


def _rows(size: Size) -> Picture:
    return np.linspace(0, 1, size[0], dtype=np.float32)[:, None]


def sky(size: Size, random: np.random.Generator) -> Picture:
    """Blue, paler towards the horizon, with soft clouds."""
    top, low = _colour(random, 85, 150, 225), _colour(random, 190, 220, 240)
    clouds = np.clip(noise(size, 32, random) - random.uniform(0.3, 1.6), 0, 1)
    share = np.broadcast_to(_rows(size), size)
    return _mix(_mix(top, low, share), np.ones(3, np.float32), 0.8 * clouds)


def grass(size: Size, random: np.random.Generator) -> Picture:
    """Green with upright blades and patches."""
    light = 0.12 * noise(size, 16, random) + 0.1 * noise(size, 4, random)
    return _plain(_colour(random, 85, 160, 60), light)


def sand(size: Size, random: np.random.Generator) -> Picture:
    """Pale yellow with soft ripples."""
    waves = np.sin(_rows(size) * size[0] / random.uniform(1.5, 2.5) + 1.5 * noise(size, 32, random))
    return _plain(_colour(random, 225, 200, 145), 0.05 * waves + 0.03 * noise(size, 4, random))


def sea(size: Size, random: np.random.Generator) -> Picture:
    """Deep blue-green with pale crests."""
    swell = np.sin(_rows(size) * size[0] / random.uniform(1.6, 2.6) + 2 * noise(size, 16, random))
    crests = np.clip(swell - 0.4, 0, 1).astype(np.float32)
    return _mix(_colour(random, 25, 95, 140), _colour(random, 120, 190, 210), crests)


def mountain(size: Size, random: np.random.Generator) -> Picture:
    """Gray-violet rock, lit from one side."""
    light = 0.2 * noise(size, 16, random) + 0.1 * noise(size, 8, random)
    return _plain(_colour(random, 125, 115, 130), light)


def road(size: Size, random: np.random.Generator) -> Picture:
    """Dark asphalt with a dashed white line."""
    picture = _plain(_colour(random, 85, 85, 90), 0.06 * noise(size, 4, random))
    dashes = (np.arange(size[1]) + random.integers(0, 24)) % 24 < 14
    middle, half = size[0] // 2, max(1, size[0] // 24)
    picture[middle - half : middle + half, dashes] = 0.85
    return picture


def brick(size: Size, random: np.random.Generator) -> Picture:
    """Red bricks in running bond with pale mortar."""
    high, wide = int(random.integers(7, 11)), int(random.integers(15, 22))
    y, x = np.ogrid[: size[0], : size[1]]
    row, shifted = y // high, x + (y // high % 2) * (wide // 2)
    tone = np.sin(row * 12.9 + (shifted // wide) * 78.2).astype(np.float32) * 0.1
    mortar = ((y % high < 1) | (shifted % wide < 1)).astype(np.float32)
    return _mix(_plain(_colour(random, 165, 80, 60), tone), _colour(random, 200, 190, 175), mortar)


def planks(size: Size, random: np.random.Generator) -> Picture:
    """Boards of brown wood."""
    wide = int(random.integers(10, 18))
    board = np.arange(size[0])[:, None] // wide
    tone = np.sin(board * 37.7).astype(np.float32) * 0.08
    grain = 0.05 * noise(size, 8, random)
    gap = 0.35 * (np.arange(size[0])[:, None] % wide < 1)
    return _plain(_colour(random, 175, 120, 70), (tone + grain - gap).astype(np.float32))


def snow(size: Size, random: np.random.Generator) -> Picture:
    """White with bluish hollows."""
    hollows = np.clip(0.5 + 0.35 * noise(size, 32, random), 0, 1)
    return _mix(_colour(random, 245, 247, 250, spread=0.02), _colour(random, 195, 212, 235), hollows)


def forest(size: Size, random: np.random.Generator) -> Picture:
    """Dark green crowns side by side."""
    crowns = np.clip(0.5 + 0.5 * noise(size, 8, random), 0, 1)
    return _mix(_colour(random, 20, 60, 35), _colour(random, 60, 115, 60), crowns)


def carpet(size: Size, random: np.random.Generator) -> Picture:
    """Lozenges in two colours."""
    period = int(random.integers(14, 22))
    y, x = np.ogrid[: size[0], : size[1]]
    lozenges = ((x + y) // period + (x - y) // period) % 2
    first, second = _colour(random, 150, 45, 80), _colour(random, 205, 150, 110)
    return _mix(first, second, lozenges.astype(np.float32)) * (1 + 0.04 * noise(size, 4, random))[..., None]


def tiles(size: Size, random: np.random.Generator) -> Picture:
    """Pale blue-green tiles with white joints."""
    side = int(random.integers(12, 20))
    y, x = np.ogrid[: size[0], : size[1]]
    tone = np.sin((y // side) * 17.3 + (x // side) * 41.1).astype(np.float32) * 0.05
    joints = ((y % side < 1) | (x % side < 1)).astype(np.float32)
    return _mix(_plain(_colour(random, 120, 185, 180), tone), _colour(random, 235, 238, 235), joints)


STUFF = (
    Stuff("sky", sky, "sky"),
    Stuff("mountain", mountain, "far", ("mountains",)),
    Stuff("sea", sea, "far", ("ocean", "water")),
    Stuff("grass", grass, "ground", ("lawn", "meadow")),
    Stuff("sand", sand, "ground", ("beach",)),
    Stuff("road", road, "ground", ("street",)),
    Stuff("brick wall", brick, "wall", ("bricks",)),
    Stuff("wooden floor", planks, "floor", ("wood floor", "floorboards")),
    Stuff("forest", forest, "far", ("woods",), novel=True),
    Stuff("snow", snow, "ground", (), novel=True),
    Stuff("carpet", carpet, "floor", ("rug",), novel=True),
    Stuff("tiles", tiles, "wall", ("tiled wall",), novel=True),
)
