"""The countable categories of the small world."""

from __future__ import annotations

from dataclasses import dataclass

from odise_pl.toyworld.drawings import DRAWINGS, Part

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
        colours: names of its possible colours.
        synonyms: other names.
        plural: of the name; None adds an s.
        place: ``ground``, ``air``, ``water`` or ``wall`` (a wall or the ground).
        turn: maximum rotation in degrees.
        novel: never labelled in the training set.
    """

    name: str
    colours: tuple[str, ...] = _ANY
    synonyms: tuple[str, ...] = ()
    plural: str | None = None
    place: str = "ground"
    turn: float = 8.0
    novel: bool = False

    @property
    def many(self) -> str:
        """The plural of the name."""
        return self.plural or f"{self.name}s"

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its drawing."""
        return DRAWINGS[self.name]


THINGS = (
    Thing("ball", colours=_BRIGHT, synonyms=("beach ball",), turn=180),
    Thing("house", synonyms=("cottage", "home"), turn=2),
    Thing("tree", colours=("green", "orange"), turn=4),
    Thing("car", synonyms=("automobile",), turn=4),
    Thing("boat", synonyms=("sailboat", "ship"), place="water"),
    Thing("fish", colours=_BRIGHT, plural="fish", place="water", turn=15),
    Thing("bird", place="air", turn=10),
    Thing("cat", colours=("orange", "brown", "white", "black", "gray"), synonyms=("kitten",)),
    Thing("flower", colours=("red", "orange", "blue", "purple", "pink", "white"), synonyms=("blossom",)),
    Thing("mushroom", colours=("red", "orange", "brown", "purple"), synonyms=("toadstool",)),
    Thing("umbrella", colours=_BRIGHT, synonyms=("parasol",), turn=20),
    Thing("cup", synonyms=("mug",)),
    Thing("chair", synonyms=("seat",)),
    Thing("clock", place="wall", synonyms=("wall clock",), turn=30),
    Thing("apple", colours=("red", "green", "yellow"), turn=15),
    Thing("kite", colours=_BRIGHT, place="air", turn=35),
    Thing("balloon", colours=_BRIGHT, place="air", turn=12, novel=True),
    Thing("truck", synonyms=("lorry",), turn=3, novel=True),
    Thing("butterfly", colours=_BRIGHT, plural="butterflies", place="air", turn=40, novel=True),
    Thing("bottle", novel=True),
    Thing("lamp", synonyms=("table lamp",), novel=True),
    Thing("hat", turn=15, novel=True),
    Thing("banana", colours=("yellow", "green"), turn=60, novel=True),
    Thing("rocket", place="air", turn=35, synonyms=("spaceship",), novel=True),
    Thing("cactus", colours=("green",), plural="cacti", turn=4, novel=True),
    Thing("snowman", colours=("white",), plural="snowmen", turn=4, novel=True),
)
