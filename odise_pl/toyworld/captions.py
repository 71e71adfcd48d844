"""Captions of scenes: they name some of the visible categories, in many phrasings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from odise_pl.toyworld.scene import Placed, Scene, pick
from odise_pl.toyworld.stuff import Stuff

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_OPENINGS = ("", "", "", "a photo of ", "a picture of ", "there is ", "an image of ")
_ON = {"sea": "in", "sky": "in", "brick wall": "in front of", "tiles": "in front of", "mountain": "near"}


def write_captions(scene: Scene, random: np.random.Generator, count: int) -> tuple[str, ...]:
    """``count`` captions of a scene, possibly with duplicates."""
    return tuple(_caption(scene, random) for _ in range(count))


def _caption(scene: Scene, random: np.random.Generator) -> str:
    kind = random.random()
    if not scene.things:
        return _finish(_background(scene, random), random)
    if len(scene.things) >= 2 and kind < 0.35:
        return _finish(_relation(scene, random), random)
    if kind < 0.85:
        return _finish(f"{_listing(scene.things, random)} {_where(scene, random)}".strip(), random)
    return _finish(f"{_listing(scene.things, random)}, {_background(scene, random)}", random)


def write_names(stuff: Stuff, random: np.random.Generator, count: int) -> tuple[str, ...]:
    """``count`` captions of a single kind of stuff."""
    return tuple(_finish(_stuff_name(stuff, random), random) for _ in range(count))


def _stuff_name(stuff: Stuff, random: np.random.Generator) -> str:
    return pick((stuff.name, stuff.name, *stuff.synonyms), random)


def _finish(text: str, random: np.random.Generator) -> str:
    text = pick(_OPENINGS, random) + text
    return text[0].upper() + text[1:] + "." if random.random() < 0.5 else text


def _noun(placed: Placed, random: np.random.Generator) -> str:
    return pick((placed.thing.name,) * 3 + placed.thing.synonyms, random)


def _phrase(placed: Placed, random: np.random.Generator) -> str:
    noun = _noun(placed, random)
    adjectives = f"{placed.colour} " if random.random() < 0.7 else ""
    if random.random() < 0.2:
        left, _, right, _ = placed.box
        adjectives = ("large " if right - left > 45 else "small ") + adjectives
    return _with_article(adjectives + noun)


def _with_article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def _listing(things: Sequence[Placed], random: np.random.Generator) -> str:
    """Things in random order, with counts: "two cats, a red ball and a house"."""
    counts = Counter(placed.thing.name for placed in things)
    phrases, seen = [], set()
    for index in random.permutation(len(things)):
        placed = things[int(index)]
        if placed.thing.name in seen:
            continue
        seen.add(placed.thing.name)
        number = counts[placed.thing.name]
        several = f"{_NUMBERS[min(number, 8)]} {placed.thing.many}"
        phrases.append(several if number > 1 else _phrase(placed, random))
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _relation(scene: Scene, random: np.random.Generator) -> str:
    first, second = (scene.things[int(i)] for i in random.permutation(len(scene.things))[:2])
    (x0, y0), (x1, y1) = first.centre, second.centre
    if abs(x1 - x0) > abs(y1 - y0):
        relation = "to the left of" if x0 < x1 else "to the right of"
    else:
        relation = "above" if y0 < y1 else "below"
    if random.random() < 0.3:
        relation = "next to"
    return f"{_phrase(first, random)} {relation} {_phrase(second, random)}"


def _where(scene: Scene, random: np.random.Generator) -> str:
    if random.random() < 0.2 or not scene.stuff:
        return ""
    _, stuff = scene.stuff[-1 if random.random() < 0.6 else int(random.integers(len(scene.stuff)))]
    return f"{_ON.get(stuff.name, 'on')} the {_stuff_name(stuff, random)}"


def _background(scene: Scene, random: np.random.Generator) -> str:
    names = [_stuff_name(stuff, random) for _, stuff in scene.stuff]
    listing = " and ".join(names)
    return listing if random.random() < 0.5 else f"with {listing} behind"
