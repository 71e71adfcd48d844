"""The countable categories of the small world: names, colours and drawings as plain data.

A drawing is a list of parts from back to front. Coordinates run from -1 to 1, y downwards. A part is
``(shape, paint, *numbers)``; the shapes are those of :func:`odise_pl.toyworld.shapes.outline`. A paint is a
number, by which the thing's own colour is multiplied, or the name of a fixed colour.
"""

from __future__ import annotations

from dataclasses import dataclass

Part = tuple[str, str | float, tuple[float, ...]]

# sRGB, 0..255
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 45),
    "orange": (235, 135, 40),
    "yellow": (240, 205, 60),
    "green": (60, 150, 65),
    "blue": (50, 95, 200),
    "purple": (130, 65, 165),
    "pink": (235, 130, 170),
    "brown": (125, 80, 45),
    "white": (240, 240, 238),
    "black": (40, 40, 45),
    "gray": (140, 140, 145),
}
_ANY = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black", "gray")
_BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink")


@dataclass(frozen=True)
class Thing:
    """A countable category.

    Attributes:
        name: ordinary English name.
        parts: its drawing, see the module.
        colours: names of the colours that it occurs in.
        synonyms: other names.
        plural: of the name; None adds an s.
        place: where it is found: ``ground``, ``air``, ``water`` or ``wall`` (a wall or the ground).
        turn: largest rotation either way, in degrees.
        novel: never labelled in the training set.
    """

    name: str
    parts: tuple[Part, ...]
    colours: tuple[str, ...] = _ANY
    synonyms: tuple[str, ...] = ()
    plural: str | None = None
    place: str = "ground"
    turn: float = 8.0
    novel: bool = False

    @property
    def many(self) -> str:
        """The name of several."""
        return self.plural or f"{self.name}s"


def _wheel(x: float, y: float) -> tuple[Part, ...]:
    return (("ellipse", "black", (x, y, 0.24, 0.24)), ("ellipse", "gray", (x, y, 0.11, 0.11)))


def _eye(x: float, y: float, colour: str = "white") -> tuple[Part, ...]:
    return (("ellipse", colour, (x, y, 0.12, 0.12)), ("ellipse", "black", (x, y, 0.06, 0.07)))


BASE_THINGS = (
    Thing(
        "ball",
        (
            ("ellipse", 1.0, (0, 0, 0.9, 0.9)),
            ("ellipse", "white", (0, 0, 0.58, 0.9)),
            ("ellipse", 0.8, (0, 0, 0.24, 0.9)),
        ),
        colours=_BRIGHT,
        synonyms=("beach ball",),
        turn=180,
    ),
    Thing(
        "house",
        (
            ("box", "brown", (0.35, -0.85, 0.6, -0.2)),
            ("box", 1.0, (-0.75, -0.15, 0.75, 0.9)),
            ("polygon", 0.6, (-1, -0.1, 0, -0.9, 1, -0.1)),
            ("box", "brown", (-0.2, 0.3, 0.2, 0.9)),
            ("box", "yellow", (-0.62, 0.1, -0.32, 0.42)),
            ("box", "yellow", (0.32, 0.1, 0.62, 0.42)),
        ),
        synonyms=("cottage", "home"),
        turn=2,
    ),
    Thing(
        "tree",
        (
            ("box", "brown", (-0.14, 0.2, 0.14, 0.95)),
            ("ellipse", 0.8, (-0.42, 0.05, 0.42, 0.38)),
            ("ellipse", 0.85, (0.42, 0.05, 0.42, 0.38)),
            ("ellipse", 1.0, (0, -0.4, 0.55, 0.52)),
        ),
        colours=("green", "orange"),
        turn=4,
    ),
    Thing(
        "car",
        (
            ("polygon", 1.0, (-0.65, 0.05, -0.38, -0.45, 0.35, -0.45, 0.68, 0.05)),
            ("polygon", "white", (-0.5, 0, -0.3, -0.35, -0.03, -0.35, -0.03, 0)),
            ("polygon", "white", (0.07, 0, 0.07, -0.35, 0.28, -0.35, 0.5, 0)),
            ("box", 0.9, (-0.95, 0, 0.95, 0.45)),
            ("box", "yellow", (0.78, 0.08, 0.95, 0.22)),
            *_wheel(-0.52, 0.45),
            *_wheel(0.52, 0.45),
        ),
        synonyms=("automobile",),
        turn=4,
    ),
    Thing(
        "boat",
        (
            ("line", "brown", (0, -0.95, 0, 0.4, 0.1)),
            ("polygon", "white", (0.08, -0.9, 0.08, 0.2, 0.8, 0.2)),
            ("polygon", 1.2, (-0.08, -0.7, -0.08, 0.2, -0.6, 0.2)),
            ("polygon", 1.0, (-0.95, 0.35, 0.95, 0.35, 0.6, 0.85, -0.6, 0.85)),
        ),
        synonyms=("sailboat", "ship"),
        place="water",
    ),
    Thing(
        "fish",
        (
            ("polygon", 0.75, (0.35, 0, 0.95, -0.42, 0.95, 0.42)),
            ("polygon", 0.75, (-0.25, -0.3, 0.1, -0.65, 0.3, -0.2)),
            ("ellipse", 1.0, (-0.15, 0, 0.7, 0.42)),
            ("ellipse", 0.8, (0.05, 0.1, 0.2, 0.12)),
            *_eye(-0.5, -0.1),
        ),
        colours=_BRIGHT,
        plural="fish",
        place="water",
        turn=15,
    ),
    Thing(
        "bird",
        (
            ("line", "orange", (-0.1, 0.4, -0.1, 0.9, 0.08)),
            ("line", "orange", (0.15, 0.4, 0.15, 0.9, 0.08)),
            ("polygon", 0.7, (0.3, 0.0, 0.95, -0.3, 0.9, 0.15)),
            ("ellipse", 1.0, (0, 0.1, 0.58, 0.4)),
            ("polygon", "orange", (-0.7, -0.45, -1.0, -0.28, -0.7, -0.2)),
            ("ellipse", 1.0, (-0.5, -0.32, 0.3, 0.3)),
            ("ellipse", 0.65, (0.12, 0.08, 0.34, 0.2)),
            *_eye(-0.58, -0.38),
        ),
        place="air",
        turn=10,
    ),
    Thing(
        "cat",
        (
            ("arc", 0.85, (0.4, 0.5, 0.4, -80, 80, 0.16)),
            ("ellipse", 1.0, (0, 0.45, 0.45, 0.5)),
            ("polygon", 0.85, (-0.5, -0.3, -0.45, -0.95, -0.08, -0.6)),
            ("polygon", 0.85, (0.5, -0.3, 0.45, -0.95, 0.08, -0.6)),
            ("ellipse", 1.0, (0, -0.32, 0.52, 0.42)),
            *_eye(-0.2, -0.38, "yellow"),
            *_eye(0.2, -0.38, "yellow"),
            ("polygon", "pink", (-0.08, -0.2, 0.08, -0.2, 0, -0.1)),
        ),
        colours=("orange", "brown", "white", "black", "gray"),
        synonyms=("kitten",),
    ),
    Thing(
        "flower",
        (
            ("line", "green", (0, -0.3, 0, 0.95, 0.12)),
            ("ellipse", "green", (0.25, 0.5, 0.25, 0.1)),
            ("ellipse", 1.0, (0, -0.8, 0.22, 0.24)),
            ("ellipse", 0.9, (0.42, -0.55, 0.24, 0.22)),
            ("ellipse", 0.9, (-0.42, -0.55, 0.24, 0.22)),
            ("ellipse", 1.0, (0.28, -0.08, 0.23, 0.23)),
            ("ellipse", 1.0, (-0.28, -0.08, 0.23, 0.23)),
            ("ellipse", "yellow", (0, -0.4, 0.24, 0.24)),
        ),
        colours=("red", "orange", "blue", "purple", "pink", "white"),
        synonyms=("blossom",),
    ),
    Thing(
        "mushroom",
        (
            ("polygon", "white", (-0.22, 0, 0.22, 0, 0.32, 0.9, -0.32, 0.9)),
            ("dome", 1.0, (0, 0.1, 0.9, 0.95)),
            ("ellipse", "white", (-0.35, -0.25, 0.14, 0.14)),
            ("ellipse", "white", (0.3, -0.15, 0.16, 0.15)),
            ("ellipse", "white", (0, -0.6, 0.13, 0.12)),
        ),
        colours=("red", "orange", "brown", "purple"),
        synonyms=("toadstool",),
    ),
    Thing(
        "umbrella",
        (
            ("line", "brown", (0, -0.1, 0, 0.75, 0.1)),
            ("arc", "brown", (-0.15, 0.72, 0.15, 0, 180, 0.1)),
            ("dome", 1.0, (0, 0.05, 0.95, 0.9)),
            ("dome", 0.75, (0, 0.05, 0.45, 0.9)),
            ("dome", 1.2, (0, 0.05, 0.15, 0.9)),
        ),
        colours=_BRIGHT,
        synonyms=("parasol",),
        turn=20,
    ),
    Thing(
        "cup",
        (
            ("arc", 0.8, (0.4, 0.05, 0.35, -95, 95, 0.16)),
            ("polygon", 1.0, (-0.7, -0.5, 0.45, -0.5, 0.35, 0.65, -0.6, 0.65)),
            ("ellipse", 0.55, (-0.125, -0.5, 0.575, 0.17)),
        ),
        synonyms=("mug",),
    ),
    Thing(
        "chair",
        (
            ("box", 0.8, (-0.55, -0.95, -0.4, 0.95)),
            ("box", 0.8, (0.4, -0.95, 0.55, 0.95)),
            ("box", 1.0, (-0.5, -0.9, 0.5, -0.65)),
            ("box", 1.0, (-0.5, -0.5, 0.5, -0.28)),
            ("polygon", 1.15, (-0.55, 0.1, 0.55, 0.1, 0.75, 0.35, -0.75, 0.35)),
            ("box", 0.9, (-0.75, 0.35, -0.58, 0.98)),
            ("box", 0.9, (0.58, 0.35, 0.75, 0.98)),
        ),
        synonyms=("seat",),
    ),
    Thing(
        "clock",
        (
            ("ellipse", 1.0, (0, 0, 0.9, 0.9)),
            ("ellipse", "white", (0, 0, 0.68, 0.68)),
            ("line", "black", (0, 0, 0, -0.52, 0.12)),
            ("line", "black", (0, 0, 0.36, 0.2, 0.12)),
        ),
        place="wall",
        synonyms=("wall clock",),
        turn=30,
    ),
    Thing(
        "apple",
        (
            ("line", "brown", (0, -0.4, 0.12, -0.9, 0.12)),
            ("ellipse", "green", (0.38, -0.75, 0.27, 0.13)),
            ("ellipse", 1.0, (-0.3, 0.1, 0.55, 0.65)),
            ("ellipse", 1.0, (0.3, 0.1, 0.55, 0.65)),
            ("ellipse", 1.3, (-0.4, -0.15, 0.13, 0.2)),
        ),
        colours=("red", "green", "yellow"),
        turn=15,
    ),
    Thing(
        "kite",
        (
            ("polygon", 1.0, (0, -0.95, 0.6, -0.25, 0, 0.6, -0.6, -0.25)),
            ("polygon", 0.7, (0, -0.95, 0.6, -0.25, 0, -0.25)),
            ("polygon", 0.7, (0, 0.6, -0.6, -0.25, 0, -0.25)),
            ("line", "white", (0, 0.6, 0.15, 0.95, 0.08)),
            ("polygon", "yellow", (-0.08, 0.7, 0.3, 0.95, 0.3, 0.7, -0.08, 0.95)),
        ),
        colours=_BRIGHT,
        place="air",
        turn=35,
    ),
)

NOVEL_THINGS = (
    Thing(
        "balloon",
        (
            ("line", "gray", (0, 0.4, 0.06, 0.95, 0.07)),
            ("polygon", 0.8, (0, 0.3, 0.13, 0.56, -0.13, 0.56)),
            ("ellipse", 1.0, (0, -0.28, 0.58, 0.68)),
            ("ellipse", 1.4, (-0.22, -0.5, 0.13, 0.2)),
        ),
        colours=_BRIGHT,
        place="air",
        turn=12,
        novel=True,
    ),
    Thing(
        "truck",
        (
            ("box", 1.0, (-0.98, -0.6, 0.3, 0.4)),
            ("polygon", 0.7, (0.35, -0.3, 0.7, -0.3, 0.98, 0.05, 0.98, 0.4, 0.35, 0.4)),
            ("polygon", "white", (0.45, -0.2, 0.66, -0.2, 0.85, 0.05, 0.45, 0.05)),
            ("box", "black", (-0.98, 0.38, 0.98, 0.5)),
            *_wheel(-0.6, 0.5),
            *_wheel(0.62, 0.5),
        ),
        synonyms=("lorry",),
        turn=3,
        novel=True,
    ),
    Thing(
        "butterfly",
        (
            ("line", "black", (0, -0.4, -0.25, -0.85, 0.06)),
            ("line", "black", (0, -0.4, 0.25, -0.85, 0.06)),
            ("ellipse", 1.0, (-0.48, -0.3, 0.45, 0.42)),
            ("ellipse", 1.0, (0.48, -0.3, 0.45, 0.42)),
            ("ellipse", 0.75, (-0.38, 0.4, 0.35, 0.38)),
            ("ellipse", 0.75, (0.38, 0.4, 0.35, 0.38)),
            ("ellipse", "white", (-0.5, -0.3, 0.16, 0.16)),
            ("ellipse", "white", (0.5, -0.3, 0.16, 0.16)),
            ("ellipse", "black", (0, 0, 0.1, 0.55)),
        ),
        colours=_BRIGHT,
        plural="butterflies",
        place="air",
        turn=40,
        novel=True,
    ),
    Thing(
        "bottle",
        (
            ("box", 0.8, (-0.15, -0.85, 0.15, -0.3)),
            ("dome", 1.0, (0, -0.15, 0.42, 0.35)),
            ("box", 1.0, (-0.42, -0.17, 0.42, 0.95)),
            ("box", "white", (-0.42, 0.15, 0.42, 0.6)),
            ("box", "brown", (-0.17, -0.97, 0.17, -0.82)),
        ),
        novel=True,
    ),
    Thing(
        "lamp",
        (
            ("ellipse", "brown", (0, 0.85, 0.42, 0.12)),
            ("line", "brown", (0, 0, 0, 0.85, 0.12)),
            ("polygon", 1.0, (-0.35, -0.9, 0.35, -0.9, 0.72, 0.05, -0.72, 0.05)),
            ("polygon", 1.25, (-0.12, -0.9, 0.12, -0.9, 0.25, 0.05, -0.25, 0.05)),
        ),
        synonyms=("table lamp",),
        novel=True,
    ),
    Thing(
        "hat",
        (
            ("ellipse", 0.85, (0, 0.45, 0.98, 0.28)),
            ("polygon", 1.0, (-0.5, 0.4, -0.42, -0.6, 0.42, -0.6, 0.5, 0.4)),
            ("ellipse", 1.0, (0, -0.58, 0.42, 0.15)),
            ("polygon", "white", (-0.5, 0.4, -0.48, 0.12, 0.48, 0.12, 0.5, 0.4)),
        ),
        turn=15,
        novel=True,
    ),
    Thing(
        "banana",
        (
            ("arc", 1.0, (0, -0.55, 0.9, 15, 165, 0.42)),
            ("arc", 0.75, (0, -0.55, 1.0, 25, 155, 0.1)),
            ("ellipse", "brown", (-0.9, -0.3, 0.1, 0.12)),
            ("ellipse", "brown", (0.9, -0.3, 0.1, 0.12)),
        ),
        colours=("yellow", "green"),
        turn=60,
        novel=True,
    ),
    Thing(
        "rocket",
        (
            ("polygon", "orange", (-0.2, 0.5, 0.2, 0.5, 0, 0.98)),
            ("polygon", 0.7, (-0.25, 0.05, -0.65, 0.65, -0.25, 0.55)),
            ("polygon", 0.7, (0.25, 0.05, 0.65, 0.65, 0.25, 0.55)),
            ("ellipse", 1.0, (0, -0.15, 0.34, 0.8)),
            ("ellipse", "white", (0, -0.3, 0.17, 0.17)),
            ("ellipse", "blue", (0, -0.3, 0.1, 0.1)),
        ),
        place="air",
        turn=35,
        synonyms=("spaceship",),
        novel=True,
    ),
    Thing(
        "cactus",
        (
            ("polygon", "brown", (-0.38, 0.55, 0.38, 0.55, 0.28, 0.98, -0.28, 0.98)),
            ("line", 0.9, (-0.55, -0.3, -0.55, 0.12, 0.24)),
            ("line", 0.9, (-0.55, 0.1, 0, 0.1, 0.22)),
            ("line", 0.9, (0.55, -0.5, 0.55, -0.08, 0.24)),
            ("line", 0.9, (0.55, -0.1, 0, -0.1, 0.22)),
            ("box", 1.0, (-0.2, -0.75, 0.2, 0.56)),
            ("ellipse", 1.0, (0, -0.75, 0.2, 0.2)),
            ("ellipse", "pink", (0, -0.92, 0.1, 0.08)),
        ),
        colours=("green",),
        plural="cacti",
        turn=4,
        novel=True,
    ),
    Thing(
        "snowman",
        (
            ("ellipse", 0.95, (0, 0.5, 0.5, 0.46)),
            ("ellipse", 1.0, (0, -0.1, 0.38, 0.36)),
            ("ellipse", 1.0, (0, -0.55, 0.28, 0.28)),
            ("box", "black", (-0.34, -0.8, 0.34, -0.72)),
            ("box", "black", (-0.2, -0.98, 0.2, -0.75)),
            ("ellipse", "black", (-0.1, -0.6, 0.05, 0.05)),
            ("ellipse", "black", (0.1, -0.6, 0.05, 0.05)),
            ("polygon", "orange", (0, -0.53, 0.3, -0.47, 0, -0.43)),
            ("ellipse", "black", (0, -0.15, 0.06, 0.06)),
            ("ellipse", "black", (0, 0.1, 0.06, 0.06)),
        ),
        colours=("white",),
        plural="snowmen",
        turn=4,
        novel=True,
    ),
)

THINGS = BASE_THINGS + NOVEL_THINGS
