"""Pictures of the small world that one core paints per second; the goal is 200."""

from __future__ import annotations

import time

import numpy as np

from odise_pl.toyworld.make import ToySet, toy_sets
from odise_pl.toyworld.scene import paint_scene


def per_second(toy_set: ToySet, pictures: int = 100, rounds: int = 5) -> float:
    """Scenes with their panoptic maps, without files: the best of several rounds."""
    times = []
    for _ in range(rounds):
        random = np.random.default_rng(0)
        start = time.process_time()
        for _ in range(pictures):
            paint_scene(random, toy_set.style, toy_set.novel)
        times.append(time.process_time() - start)
    return pictures / min(times)


if __name__ == "__main__":
    for toy_set in toy_sets():
        print(f"toy_{toy_set.name}: {per_second(toy_set):.0f} pictures a second and core")
