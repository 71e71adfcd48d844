"""Settings of short runs with a small network."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from odise_pl.runs.conf import compose_config

ROOT = Path(__file__).parents[1]
SMALL = [
    "experiment=laptop",
    "data.num_workers=0",
    "data.augment=none",
    "data.eval_short_side=64",
    "data.eval_long_side=96",
    "backbone.input_size=64",
    "model.head.queries=12",
    "criterion.num_points=256",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress",
]


def composed(name: str, run_dir: Path, overrides: list[str]) -> DictConfig:
    return compose_config(name, ["run=test", f"run_dir={run_dir}", *overrides])
