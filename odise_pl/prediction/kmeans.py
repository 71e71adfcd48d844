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
from odise_pl.models.backbones.timesteps import STEPS
from odise_pl.models.build import BackboneSettings
from odise_pl.prediction.drawing import Picture, side_by_side
from odise_pl.runs.conf import compose_config

TAPS = ("encoder.2", "encoder.3", *(f"unet.up.{i}" for i in range(4)), "decoder.0", "decoder.1")


class FeatureReader:
    """Reads one feature map of a diffusion model at one step, with the empty prompt.

    Args:
        settings: of the diffusion model.
        timestep: in 0..999.
        tap: one of :data:`TAPS`.
        size: shorter side of the diffusion model's input in pixels.

    Raises:
        SettingError: a value is out of range.
        WeightsError: weights are missing or damaged.
    """

    def __init__(
        self, settings: BackboneSettings, timestep: int = 0, tap: str = "unet.up.2", size: int = 512
    ) -> None:
        if tap not in TAPS:
            raise SettingError(f"--tap {tap}: choose one of {', '.join(TAPS)}")
        if not 0 <= timestep < STEPS:
            raise SettingError(f"--timestep {timestep} must be in 0..{STEPS - 1}")
        if size < 1:
            raise SettingError(f"--size {size} must be positive")
        models = load_diffusion(settings.weights, settings.architecture)
        self.features = LatentDiffusionFeatures(models, (timestep,))
        self.context = encode_prompts(models.text_encoder.eval(), [""], settings.architecture.text_pad)
        self.index = [t.name.replace(f".t{timestep}.", ".") for t in self.features.taps].index(tap)
        self.size = size

    @torch.no_grad()
    def read(self, image: Image.Image) -> Tensor:
        """Features [channels, height, width] of an RGB image, after resizing it to whole cells."""
        width, height = (self._whole(side, min(image.size)) for side in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        return self.features(images, self.context)[self.index][0]

    def _whole(self, side: int, short: int) -> int:
        multiple = self.features.input_multiple
        return max(multiple, round(side * self.size / short / multiple) * multiple)


def cluster(features: Tensor, clusters: int, seed: int = 0) -> NDArray[np.int32]:
    """Cluster the cells of a feature map by k-means.

    Args:
        features: [channels, height, width].
        clusters: their number.
        seed: of the initial centres.

    Returns:
        [height, width], 0 to ``clusters - 1``, the largest cluster first.

    Raises:
        SettingError: fewer than one cluster, or more than there are cells.
    """
    height, width = features.shape[1:]
    if not 1 <= clusters <= height * width:
        raise SettingError(
            f"--clusters {clusters} must be in 1..{height * width}, the cells of this tap at this --size"
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
    """Write one picture for each image and return their paths.

    Args:
        images: files.
        out: a ``.png`` for one image, or a folder; None: beside the image.
        tap, timestep: see :class:`FeatureReader`.
        clusters: see :func:`cluster`.
        backbone: name in ``conf/backbone``.
        weights: to replace the backbone's.
        size: see :class:`FeatureReader`; None: the input size of the backbone.
        seed: of k-means and of random weights.
    """
    pictures, targets = [read_image(path) for path in images], _targets(images, out)
    torch.manual_seed(seed)
    settings: BackboneSettings = instantiate(
        compose_config("train", ["run=kmeans", "run_dir=.", f"backbone={backbone}"]).backbone
    )
    settings = settings if weights is None else replace(settings, weights=weights)
    reader = FeatureReader(settings, timestep, tap, size or settings.input_size)
    for image, target in zip(pictures, targets, strict=True):
        labels = cluster(reader.read(image), clusters, seed)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_beside(image, labels)).save(target)
    return targets


def _targets(images: Sequence[Path], out: Path | None) -> list[Path]:
    if out is not None and out.suffix.lower() == ".png":
        if len(images) > 1:
            raise SettingError(f"--out {out} is a file, but there are {len(images)} images: choose a folder")
        return [out]
    targets = [(out or path.parent) / f"{path.stem}_kmeans.png" for path in images]
    if len(set(targets)) < len(targets):
        raise SettingError(
            "images of the same name would overwrite each other's pictures: run them one by one"
        )
    return targets
