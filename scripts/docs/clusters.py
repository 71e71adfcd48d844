"""What frozen diffusion features tell apart: kmeans.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment

from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.stable_diffusion import encode_prompts, load_diffusion
from odise_pl.models.build import BackboneSettings
from odise_pl.prediction.drawing import load_font
from odise_pl.prediction.kmeans import TAPS, cluster, resize_to_cells
from odise_pl.runs.conf import compose_config
from scripts.docs.style import LIGHT, canvas, place, save_png

_TAPS = ("encoder.2", "unet.up.0", "unet.up.1", "unet.up.2", "unet.up.3", "decoder.1")
_TIMESTEPS = (0, 100, 500)
_CLUSTERS = 6
_COLOURS = ("#0f8b8d", "#f2b134", "#3d6fc4", "#d1495b", "#8f6bb3", "#7fb069")
_SIDE = 214  # of a tile
_GAP, _MARGIN, _LEFT, _TOP = 10, 26, 88, 70


@torch.no_grad()
def cluster_taps(image: Image.Image) -> dict[tuple[int, str], NDArray[np.int32]]:
    """Clusters of the toy backbone's features, by timestep and tap."""
    config = compose_config("train", ["run=pictures", "run_dir=.", "backbone=toy"]).backbone
    settings: BackboneSettings = instantiate(config)
    torch.manual_seed(0)
    models = load_diffusion(settings.weights, settings.architecture)
    prompt = encode_prompts(models.text_encoder.eval(), [""], settings.architecture.text_pad)
    labels = {}
    for timestep in _TIMESTEPS:
        features = LatentDiffusionFeatures(models, (timestep,))
        found = features(resize_to_cells(image, settings.input_size, features.input_multiple), prompt)
        labels |= {(timestep, tap): cluster(found[TAPS.index(tap)][0], _CLUSTERS) for tap in _TAPS}
    return labels


def draw_kmeans(images: Sequence[Image.Image], folder: Path) -> Path:
    """Clusters of square images: taps in columns, timesteps in rows; similar regions have the same colour."""
    rows = len(images) * len(_TIMESTEPS)
    picture, draw = canvas(_TOP + rows * (_SIDE + _GAP) + 2 * _MARGIN * len(images) - _MARGIN)
    lefts = [_MARGIN + _LEFT + column * (_SIDE + _GAP) for column in range(1 + len(_TAPS))]
    for left, title in zip(lefts, ("image", *_TAPS), strict=True):
        draw.text((left + _SIDE / 2, _MARGIN), title, LIGHT.ink, load_font(23, bold=True), anchor="ma")
    for number, image in enumerate(images):
        labels = cluster_taps(image)
        reference = _enlarged(labels[_TIMESTEPS[0], "unet.up.2"])
        top = _TOP + number * (len(_TIMESTEPS) * (_SIDE + _GAP) + 2 * _MARGIN)
        place(picture, image, (lefts[0], top), (_SIDE, _SIDE))
        for row, timestep in enumerate(_TIMESTEPS):
            y = top + row * (_SIDE + _GAP)
            draw.text((_MARGIN, y + _SIDE / 2), f"t = {timestep}", LIGHT.ink, load_font(23), anchor="lm")
            for left, tap in zip(lefts[1:], _TAPS, strict=True):
                place(
                    picture,
                    _coloured(_enlarged(labels[timestep, tap]), reference),
                    (left, y),
                    (_SIDE, _SIDE),
                    10,
                )
    return save_png(picture, folder / "kmeans.png", colours=128)


def _enlarged(labels: NDArray[np.int32], side: int = 2 * _SIDE) -> NDArray[np.int32]:
    return np.asarray(Image.fromarray(labels).resize((side, side), Image.Resampling.NEAREST))


def _coloured(labels: NDArray[np.int32], reference: NDArray[np.int32]) -> Image.Image:
    """Clusters in the colours of those of the reference that they overlap most, one to one."""
    overlap = np.zeros((_CLUSTERS, _CLUSTERS), np.int64)
    np.add.at(overlap, (labels.ravel(), reference.ravel()), 1)
    _, order = linear_sum_assignment(-overlap)
    palette = np.array([tuple(bytes.fromhex(colour[1:])) for colour in _COLOURS], np.uint8)
    return Image.fromarray(palette[order][labels])
