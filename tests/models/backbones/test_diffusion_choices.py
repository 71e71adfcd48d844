"""The diffusion models of ``conf/backbone`` at full size, without memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from odise_pl.models.backbones.contract import Tap
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.pyramid import FeaturePyramid
from odise_pl.models.build import BackboneSettings
from odise_pl.runs.conf import compose_config

_SD_VAE = ["encoder.2 512@4", "encoder.3 512@8"], ["decoder.0 512@8", "decoder.1 512@4"]
_SD_UNET = ["unet.t{}.up.0 2560@64", "unet.t{}.up.1 1920@32", "unet.t{}.up.2 960@16", "unet.t{}.up.3 640@8"]


def sd(step: int = 0) -> list[str]:
    return [*_SD_VAE[0], *(tap.format(step) for tap in _SD_UNET), *_SD_VAE[1]]


SD1, SD2 = (859_520_964, 83_653_863, 123_060_480), (865_910_724, 83_653_863, 340_387_840)
# Parameters of UNet, VAE and conditioning; shape of the empty conditioning; taps.
CHOICES: dict[str, tuple[tuple[int, int, int], tuple[int, int], list[str]]] = {
    "sd_v1_3": (SD1, (77, 768), sd()),
    "sd_v1_5": (SD1, (77, 768), sd()),
    "sd_v2_1": (SD2, (77, 1024), sd()),
    "sd_turbo": (SD2, (77, 1024), sd()),
    "cleandift_sd15": (SD1, (77, 768), sd(261)),
    "cleandift_sd21": (SD2, (77, 1024), sd(261)),
    "ldm_in1k": (
        (400_920_579, 55_322_782, 0),
        (1, 512),
        [
            *("encoder.1 256@2", "encoder.2 512@4"),
            *("unet.t0.up.0 1536@32", "unet.t0.up.1 960@16", "unet.t0.up.2 576@8", "unet.t0.up.3 384@4"),
            *("decoder.0 512@4", "decoder.1 256@2"),
        ],
    ),
    "sdxl": (
        (2_567_463_684, 83_653_863, 123_060_480 + 694_659_840),
        (78, 2048),
        [
            *_SD_VAE[0],
            *("unet.t0.up.0 1920@32", "unet.t0.up.1 960@16", "unet.t0.up.2 640@8"),
            *_SD_VAE[1],
        ],
    ),
}


def settings_of(choice: str) -> BackboneSettings:
    config = compose_config("train", ["run=t", "run_dir=t", f"backbone={choice}"])
    settings: BackboneSettings = instantiate(config.backbone)
    return replace(settings, weights="random", unet=None)


def size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def describe(tap: Tap) -> str:
    return f"{tap.name} {tap.channels}@{tap.stride}"


@pytest.mark.parametrize("choice", CHOICES)
def test_published_sizes_and_taps(choice: str) -> None:
    settings, (sizes, context, taps) = settings_of(choice), CHOICES[choice]
    with torch.device("meta"):
        features, condition = settings.load()
        FeaturePyramid(features.taps, settings.channels)  # refuses taps that do not cover strides 4 to 32
    assert isinstance(features, LatentDiffusionFeatures)
    assert condition is not None
    assert (size(features.unet), size(features.vae), size(condition.encode)) == sizes
    assert condition.uncond.shape == (1, *context)
    assert [describe(tap) for tap in features.taps] == taps
    assert settings.input_size % features.input_multiple == 0
    assert condition.time_dim == features.unet.time_embedding.linear_2.out_features
    assert features.noisy == (not choice.startswith("cleandift"))
