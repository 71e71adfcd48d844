"""Parameters, windows, processor time and memory of every backbone.

``python -m scripts.bench_backbones`` builds each choice of conf/backbone with random weights in a process of
its own, and computes the features of one window on one thread. It writes the figures after each; run it again
to measure what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from odise_pl.models.backbones.contract import Conditioning
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.sliding_window import cut_windows, plan_windows
from odise_pl.models.memory import keep_freed_memory
from odise_pl.runs.conf import CONF, compose_config
from scripts.figures import write_figures
from scripts.steps import peak_gib

FIGURES = Path(__file__).parents[1] / "docs" / "figures" / "backbones.json"
IMAGE = 1024  # side in pixels
TEMPLATES = {"timm", "two", "clip"}
WHOLE_NETWORKS = {"groupvit", "toy_groupvit"}  # they segment by themselves
OTHER_NAMES = {"sd_v1_3", "sd_v2_1"}
NAMES = sorted(
    {path.stem for path in CONF.glob("backbone/*.yaml")} - TEMPLATES - WHOLE_NETWORKS - OTHER_NAMES
)
_LONG = 60  # seconds, after which a measurement is not repeated


def read_settings(name: str) -> FeatureSettings:
    """The settings of ``conf/backbone/NAME.yaml`` without files."""
    config = compose_config("train", [f"backbone={name}", f"run_dir={name}"]).backbone
    files = {"weights": "random", "unet": None}
    settings: FeatureSettings = instantiate(config, **{k: v for k, v in files.items() if k in config})
    return settings


def measure(name: str) -> dict[str, Any]:
    """A row of the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    settings = read_settings(name)
    features, condition = settings.load()
    conditioning = condition and Conditioning(condition.uncond)
    del condition  # and its text encoder
    window = IMAGE if isinstance(settings.window, str) else settings.window  # whole
    windows = plan_windows(IMAGE, IMAGE, window)
    cuts = cut_windows(torch.rand(1, 3, IMAGE, IMAGE), windows[:1], settings.input_size)
    seconds: list[float] = []
    while len(seconds) < 2 and sum(seconds) < _LONG:
        start = time.process_time()
        with torch.inference_mode():
            features(cuts, conditioning)
        seconds.append(time.process_time() - start)
    return {
        "name": name,
        "parameters_million": sum(p.numel() for p in features.parameters()) / 1e6,
        "window": windows[0].side,
        "input_size": settings.input_size,
        "windows": len(windows),
        "features_s": min(seconds),
        "peak_gib": peak_gib(),
    }


def main() -> int:
    """Print and write a row per backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help="measure these, also again")
    parser.add_argument("--json", type=Path, default=FIGURES, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args()
    known = json.loads(options.json.read_text())["rows"] if options.json.is_file() else []
    rows = {row["name"]: row for row in known}
    names = options.only or [name for name in NAMES if name not in rows]
    what = (
        "Frozen networks with random weights: parameters, windows of an image of 1024x1024 pixels, processor "
        "seconds of the features of one window on one thread (the least of two, unless one takes a minute), "
        "and peak memory."
    )
    failed = 0
    for name in names:
        try:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                rows[name] = process.submit(measure, name).result()
        except Exception as error:  # the others are still measured
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        print(json.dumps(rows[name]), flush=True)
        found = {"rows": [rows[name] for name in sorted(rows)]}
        write_figures(options.json, what, found)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
