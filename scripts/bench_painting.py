"""Pictures of the small world that one core paints per second; the goal is 200."""

from __future__ import annotations

import time

import numpy as np

from odise_pl.toyworld.make import toy_sets
from odise_pl.toyworld.scene import World, paint_scene
from odise_pl.toyworld.style import WEB, Style


def per_second(style: Style, world: World, pictures: int = 100, rounds: int = 5) -> float:
    """Scenes with their panoptic maps, without files: the best of several rounds."""
    times = []
    for _ in range(rounds):
        random = np.random.default_rng(0)
        start = time.process_time()
        for _ in range(pictures):
            paint_scene(random, style, world)
        times.append(time.process_time() - start)
    return pictures / min(times)


if __name__ == "__main__":
    kinds = [(f"toy_{one.name}", one.style, one.world) for one in toy_sets()]
    for name, style, world in (*kinds, ("pre-training", WEB, World())):
        print(f"{name}: {per_second(style, world):.0f} pictures a second and core")
