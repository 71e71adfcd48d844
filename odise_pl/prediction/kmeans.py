"""k-means clusters of frozen diffusion features, drawn beside the image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor

from odise_pl.data.images import read_image
from odise_pl.errors import SettingError
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.stable_diffusion import encode_prompts, load_diffusion
from odise_pl.models.build import BackboneSettings
from odise_pl.prediction.drawing import Picture, side_by_side
from odise_pl.runs.conf import CONF, compose_config

# in the order of LatentDiffusionFeatures.taps at one step
TAPS = ("encoder.2", "encoder.3", *(f"unet.up.{i}" for i in range(4)), "decoder.0", "decoder.1")


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
    tap: str = "unet.up.2",
    timestep: int = 0,
    clusters: int = 8,
    backbone: str = "stable_diffusion_v1",
    weights: str | None = None,
    size: int | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write ``IMAGE_kmeans.png`` for each image, from features with the empty prompt; returns the paths.

    Args:
        images: files.
        out: folder; None: beside the image.
        tap: one of :data:`TAPS`.
        timestep: diffusion step.
        clusters: see :func:`cluster`.
        backbone: name in ``conf/backbone``.
        weights: to replace the backbone's.
        size: shorter side of the diffusion model's input in pixels; None: the backbone's.
        seed: of k-means and of random weights.

    Raises:
        SettingError: an option has no such choice.
        WeightsError: weights are missing or damaged.
    """
    _check_choice("--tap", tap, TAPS)
    _check_choice("--backbone", backbone, sorted(path.stem for path in CONF.glob("backbone/*.yaml")))
    pictures = [read_image(path) for path in images]
    targets = [(out or path.parent) / f"{path.stem}_kmeans.png" for path in images]
    if len(set(targets)) < len(targets):
        raise SettingError("images of the same name would overwrite each other's pictures in --out")
    config = compose_config("train", ["run=kmeans", "run_dir=.", f"backbone={backbone}"]).backbone
    settings: BackboneSettings = instantiate(config)
    settings = settings if weights is None else replace(settings, weights=weights)
    torch.manual_seed(seed)
    models = load_diffusion(settings.weights, settings.architecture)
    features = LatentDiffusionFeatures(models, (timestep,))
    prompt = encode_prompts(models.text_encoder.eval(), [""], settings.architecture.text_pad)
    for image, target in zip(pictures, targets, strict=True):
        cells = resize_to_cells(image, size or settings.input_size, features.input_multiple)
        labels = cluster(features(cells, prompt)[TAPS.index(tap)][0], clusters, seed)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_beside(image, labels)).save(target)
    return targets


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SettingError(f"{option} {value}: choose one of {', '.join(choices)}")
