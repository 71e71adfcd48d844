"""k-means clusters of frozen features, drawn beside the image."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor

from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.data.images import read_image
from odise_pl.errors import SettingError
from odise_pl.models.backbones.contract import Conditioning, Features
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.prediction.drawing import Picture, side_by_side
from odise_pl.runs.checks import missing_weights, raise_problems
from odise_pl.runs.conf import CONF, compose_config

_NO_FEATURES = r"Joint|ClipFeature|(?i:groupvit)"  # two networks, and parts of a network that segments
_SHOWN_STRIDE = 16  # of the map that is clustered by default


def tap_names(features: Features) -> list[str]:
    """Names of the maps of features at one diffusion step, without the step: ``unet.up.2``."""
    return [re.sub(r"\.t\d+\.", ".", tap.name) for tap in features.taps]


def resize_to_cells(image: Image.Image, size: int, multiple: int) -> Tensor:
    """An RGB image [1, 3, H, W] in 0..1, resized to a shorter side of about ``size``, in whole cells."""
    sides = (max(1, round(side * size / min(image.size) / multiple)) * multiple for side in image.size)
    width, height = sides
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def cluster(features: Tensor, clusters: int, seed: int = 0) -> NDArray[np.int32]:
    """Cluster the cells of a feature map by k-means.

    Args:
        features: [channels, height, width].
        clusters: their number.
        seed: of the initial centres.

    Returns:
        [height, width], 0 to ``clusters - 1``, the largest cluster first.

    Raises:
        SettingError: more clusters than cells.
    """
    height, width = features.shape[1:]
    if clusters > height * width:
        raise SettingError(
            f"--clusters {clusters} must be at most {height * width}, the cells of this --tap at this --size"
        )
    cells = features.flatten(1).T.double().cpu().numpy()
    _, labels = kmeans2(cells, clusters, minit="++", rng=np.random.default_rng(seed), missing="warn")
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    return np.argsort(order)[labels].reshape(height, width).astype(np.int32)


def draw_beside(image: Image.Image, labels: NDArray[np.int32]) -> Picture:
    """The image and its clusters, enlarged to the same size, side by side: uint8 [H, 2 W + gap, 3]."""
    count = int(labels.max()) + 1
    palette = [colorsys.hsv_to_rgb(i / count, 0.65, 0.95) for i in range(count)]
    colors = (255 * np.array(palette)).round().astype(np.uint8)
    clusters = Image.fromarray(colors[labels]).resize(image.size, Image.Resampling.NEAREST)
    return side_by_side([np.asarray(image), np.asarray(clusters)])


@torch.no_grad()
def draw_clusters(
    images: Sequence[Path],
    out: Path | None = None,
    tap: str | None = None,
    timestep: int | None = None,
    clusters: int = 8,
    backbone: str = "stable_diffusion_v1",
    weights: str | None = None,
    size: int | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write ``IMAGE_kmeans.png`` for each image; returns the paths. Diffusion models get the empty prompt.

    Args:
        images: files.
        out: folder; None: beside the image.
        tap: one of :func:`tap_names`; None: of stride 16.
        timestep: diffusion step; None: the backbone's. Only for diffusion models.
        clusters: see :func:`cluster`.
        backbone: name in ``conf/backbone``.
        weights: to replace the backbone's.
        size: shorter side of the network's input in pixels; None: the backbone's.
        seed: of k-means and of random weights.

    Raises:
        SettingError: an option has no such choice.
        WeightsError: weights are missing or damaged.
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in CONF.glob("backbone/*.yaml")}
    files = {name: re.sub("#.*", "", text) for name, text in texts.items()}
    _check_choice("--backbone", backbone, sorted(n for n in files if not re.search(_NO_FEATURES, files[n])))
    pictures = [read_image(path) for path in images]
    targets = [(out or path.parent) / f"{path.stem}_kmeans.png" for path in images]
    if len(set(targets)) < len(targets):
        raise SettingError("images of the same name would overwrite each other's pictures in --out")
    config = compose_config("train", ["run=kmeans", "run_dir=.", f"backbone={backbone}"])
    if weights is not None:
        config.backbone.weights = weights
    missing = missing_weights(NetworkSettings.of_config(config), config.paths)
    raise_problems([p.replace("backbone.weights", "--weights") for p in missing if p.startswith("backbone.")])
    settings: FeatureSettings = instantiate(config.backbone)
    changes: dict[str, Any] = {}
    if timestep is not None:
        if not settings.conditioned:
            raise SettingError(f"--timestep {timestep}: {backbone} is not a diffusion model; remove it")
        changes["timesteps"] = (timestep,)
    settings = replace(settings, input_size=size or settings.input_size, **changes)
    torch.manual_seed(seed)
    features, condition = settings.load()
    if features.fixed_size:  # it takes that size only, so it cannot be rounded
        features.check_size(settings.input_size, "--size" if size else "backbone.input_size")
    prompt = None if condition is None else Conditioning(condition.uncond)
    names = tap_names(features)
    of_stride = [n for n, t in zip(names, features.taps, strict=True) if t.stride == _SHOWN_STRIDE]
    tap = tap or (of_stride or names)[0]
    _check_choice("--tap", tap, names)
    for image, target in zip(pictures, targets, strict=True):
        shown = image.resize((settings.input_size,) * 2) if features.fixed_size else image
        cells = resize_to_cells(shown, settings.input_size, features.input_multiple)
        labels = cluster(features(cells, prompt)[names.index(tap)][0], clusters, seed)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_beside(image, labels)).save(target)
    return targets


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SettingError(f"{option} {value}: choose one of {', '.join(choices)}")
