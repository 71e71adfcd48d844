"""What frozen diffusion features tell apart: kmeans.png."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment

from odise_pl.models.backbones.contract import Conditioning
from odise_pl.models.build import BackboneSettings
from odise_pl.prediction.drawing import load_font
from odise_pl.prediction.kmeans import cluster, resize_to_cells, tap_names
from odise_pl.runs.conf import compose_config
from scripts.docs.style import LIGHT, canvas, place, save_png

_TAPS = ("encoder.2", "unet.up.2", "unet.up.3", "decoder.0", "decoder.1")
_TIMESTEPS = (0, 100, 500)
_CLUSTERS = 6
_COLOURS = ("#0f8b8d", "#f2b134", "#3d6fc4", "#d1495b", "#8f6bb3", "#7fb069")
_SIDE = 243  # of a tile
_GAP, _MARGIN, _HEADER, _LABELS = 10, 26, 44, 104


@torch.no_grad()
def cluster_taps(image: Image.Image) -> dict[tuple[int, str], NDArray[np.int32]]:
    """Clusters of the toy backbone's features, by timestep and tap."""
    config = compose_config("train", ["run=pictures", "run_dir=.", "backbone=toy"]).backbone
    settings: BackboneSettings = instantiate(config)
    torch.manual_seed(0)
    labels: dict[tuple[int, str], NDArray[np.int32]] = {}
    for timestep in _TIMESTEPS:
        features, condition = replace(settings, timesteps=(timestep,)).load()
        assert condition is not None
        cells = resize_to_cells(image, settings.input_size, features.input_multiple)
        found = features(cells, Conditioning(condition.uncond))
        maps = dict(zip(tap_names(features), found, strict=True))
        labels |= {(timestep, tap): cluster(maps[tap][0], _CLUSTERS) for tap in _TAPS}
    return labels


def draw_kmeans(image: Image.Image, folder: Path) -> Path:
    """Clusters of a square image, similar ones in the same colour: taps in columns, timesteps in rows."""
    labels, step = cluster_taps(image), _SIDE + _GAP
    reference = _enlarged(labels[_TIMESTEPS[0], "unet.up.3"])
    top = _MARGIN + _HEADER
    picture, draw = canvas(top + len(_TIMESTEPS) * step - _GAP + _MARGIN)
    lefts = [_MARGIN, *(_MARGIN + _LABELS + column * step for column in range(1, 1 + len(_TAPS)))]
    for left, title in zip(lefts, ("image", *_TAPS), strict=True):
        draw.text((left + _SIDE / 2, _MARGIN), title, LIGHT.ink, load_font(24, bold=True), anchor="ma")
    place(picture, image, (_MARGIN, top), (_SIDE, _SIDE), radius=12)
    for y, timestep in zip(range(top, picture.height, step), _TIMESTEPS, strict=False):
        draw.text((lefts[1] - 16, y + _SIDE / 2), f"t = {timestep}", LIGHT.ink, load_font(23), anchor="rm")
        for left, tap in zip(lefts[1:], _TAPS, strict=True):
            tile = _coloured(_enlarged(labels[timestep, tap]), reference)
            place(picture, tile, (left, y), (_SIDE, _SIDE), radius=12)
    return save_png(picture, folder / "kmeans.png", colours=256)


def _enlarged(labels: NDArray[np.int32], side: int = 2 * _SIDE) -> NDArray[np.int32]:
    return np.asarray(Image.fromarray(labels).resize((side, side), Image.Resampling.NEAREST))


def _coloured(labels: NDArray[np.int32], reference: NDArray[np.int32]) -> Image.Image:
    """Clusters in the colours of those of the reference that they overlap most, one to one."""
    overlap = np.zeros((_CLUSTERS, _CLUSTERS), np.int64)
    np.add.at(overlap, (labels.ravel(), reference.ravel()), 1)
    _, order = linear_sum_assignment(-overlap)
    palette = np.array([tuple(bytes.fromhex(colour[1:])) for colour in _COLOURS], np.uint8)
    return Image.fromarray(palette[order][labels])
