"""The small world's frozen networks, as ``conf`` describes them."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate

from odise_pl.models.backbones.clip import CLIPArchitecture
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture
from odise_pl.runs.conf import compose_config

_CONFIG = compose_config("train", ["experiment=toy", "run_dir=."])
CLIP: CLIPArchitecture = instantiate(_CONFIG.clip.architecture)
DIFFUSION: DiffusionArchitecture = instantiate(_CONFIG.backbone.architecture, _convert_="all")
WEIGHTS = Path(_CONFIG.paths.toyworld)  # of the package
CONV_CLIP: CLIPArchitecture = instantiate(
    compose_config("train", ["experiment=toy", "run_dir=.", "clip=toy_conv"]).clip.architecture
)
CLIP_FILE, DIFFUSION_FOLDER = "clip.safetensors", "diffusion"  # in a folder of weights
MEMBERS = Path("representations")  # as well
CONV_CLIP_FILE = MEMBERS / "clip_conv.safetensors"
CLASSES_FOLDER = MEMBERS / "class_conditional_diffusion"


def backbone(name: str, weights: str | Path = "random") -> FeatureSettings:
    """A choice of ``conf/backbone``, with its weights in a folder like :data:`WEIGHTS`, or ``random``."""
    changes = ["backbone.weights=random"] if weights == "random" else [f"paths.toyworld={weights}"]
    config = compose_config("train", ["experiment=toy", "run_dir=.", f"backbone={name}", *changes])
    settings: FeatureSettings = instantiate(config.backbone, _convert_="all")
    return settings
