"""Pictures of the small world to try the page with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from odise_pl.toyworld.make import vocabulary
from odise_pl.toyworld.scene import Scene, paint_scene
from odise_pl.toyworld.style import OPEN
from odise_pl.vocabulary import Vocabulary

_SEED, _COUNT = 27, 4


def paint_examples(training: Vocabulary, folder: Path) -> list[list[str]]:
    """Paint pictures for a network that was trained on the small world; none for others.

    Returns:
        for each picture its path and the words for what is in it.
    """
    if training != vocabulary(novel=False):
        return []
    folder.mkdir()
    return [_paint(folder / f"example_{number}.png", number) for number in range(1, _COUNT + 1)]


def _paint(path: Path, number: int) -> list[str]:
    scene = paint_scene(np.random.default_rng([_SEED, number]), OPEN)
    Image.fromarray(scene.image).save(path)
    return [str(path), ", ".join(_words(scene))]


def _words(scene: Scene) -> list[str]:
    things = dict.fromkeys(placed.thing.name for placed in scene.things)
    return [*things, *(f"{stuff.name}:stuff" for _, stuff in scene.stuff)]
