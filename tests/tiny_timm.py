"""Every family of timm backbones in small: real names, few layers, random weights."""

from __future__ import annotations

from typing import Any

VIT = {"depth": 4, "embed_dim": 32, "num_heads": 2}
STAGES = {"depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 2, 4, 8]}
BOTTLENECKS = {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}
CONVOLUTIONS = {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}
# name of timm, and arguments that make it small; MViT takes none
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224.augreg_in21k", VIT),
    "eva": ("vit_small_patch16_dinov3.lvd1689m", VIT),
    "beit": ("beitv2_base_patch16_224.in1k_ft_in22k", VIT),
    "swin": ("swin_tiny_patch4_window7_224.ms_in1k", STAGES),
    "swinv2": ("swinv2_tiny_window8_256.ms_in1k", STAGES),
    "convnext": ("convnext_atto.d2_in1k", CONVOLUTIONS),
    "resnet": ("resnet50.tv_in1k", BOTTLENECKS),
    "mvit": ("mvitv2_tiny.fb_in1k", {}),
}


def shrink(model: str) -> tuple[str, dict[str, Any]]:
    """A small network of the same kind: its name, and arguments of its constructor."""
    if "mvit" in model:
        return FAMILIES["mvit"]
    kinds = {"convnext": CONVOLUTIONS, "resnet": BOTTLENECKS, "swin": STAGES}
    return model, next((small for kind, small in kinds.items() if kind in model), VIT)


def overrides(family: str) -> list[str]:
    """Settings of a short run."""
    model, options = FAMILIES[family]
    text = ", ".join(f"{name}: {value}" for name, value in options.items())
    return [f"backbone.model={model}", f"+backbone.options={{{text}}}", "backbone.channels=128"]
