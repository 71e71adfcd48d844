"""Pictures of the small world that one core paints per second."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from odise_pl.toyworld.make import ToySet, toy_sets
from odise_pl.toyworld.scene import paint_scene
from scripts.figures import write_figures


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


def main() -> None:
    """Print a line per set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures for the documentation")
    file = parser.parse_args().json
    speeds = {f"toy_{toy_set.name}": per_second(toy_set) for toy_set in toy_sets()}
    for name, speed in speeds.items():
        print(f"{name}: {speed:.0f} pictures a second and core")
    if file:
        what = "Pictures of the small world that a core paints per second, without files; best of 5 rounds."
        write_figures(file, what, {"per_second": speeds})


if __name__ == "__main__":
    main()
