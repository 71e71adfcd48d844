"""A configuration so small that a plan of it takes seconds."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from odise_pl.plan.__main__ import configuration

CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    "experiment=laptop",
    "global_batch=8",
    "batch=2",
    "data.image_size=128",
    "backbone.input_size=64",
    "model.head.layers=1",
    "model.head.pixel_layers=1",
    "criterion.num_points=256",
]


def config(*settings: str) -> DictConfig:
    return configuration([*SMALL, *settings], CONF)
