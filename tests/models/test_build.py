from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import tiny_models
import torch
from transformers import CLIPTextModel

from odise_pl.models.build import (
    BackboneSettings,
    ClipSettings,
    HeadSettings,
    blip_captioner,
    build_odise,
    empty_captioner,
    heuristic_captioner,
    implicit_captioner,
)
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.inference import InferenceSettings


def test_published_model_sizes() -> None:
    with torch.device("meta"):  # shapes without memory; the label model would embed a text
        model = build_odise(
            BackboneSettings(), ClipSettings(), implicit_captioner(), HeadSettings(), ClassifierSettings(),
            InferenceSettings(), "caption",
        )  # fmt: skip
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == 859_520_964 + 83_653_863 + 427_944_193  # UNet, VAE and CLIP, each once
    assert [(tap.channels, tap.stride) for tap in model.backbone.features.taps] == [
        (512, 4), (512, 8), (2560, 64), (1920, 32), (960, 16), (640, 8), (512, 8), (512, 4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("supervision", "architecture"), [("label", tiny_models.SD1), ("caption", tiny_models.SD2)]
)
def test_outputs_of_each_supervision(supervision: str, architecture: Any) -> None:
    model = tiny_models.odise(supervision, architecture=architecture)
    outputs = model(torch.rand(1, 3, 64, 64), model.encode_classes((("a",), ("b", "c"))))
    assert len(outputs) == tiny_models.HEAD.layers + 1
    for output in outputs:
        assert output.class_logits.shape == (1, 10, 3 if supervision == "label" else 2)
        assert output.mask_logits.shape == (1, 10, 16, 16)
        assert output.mask_embed.shape == (1, 10, 32)
        assert 0 < output.logit_scale <= 100
    null = model.text_projection.null_embed
    assert (null is None) == (model.mask_decoder.object_head is not None) == (supervision == "caption")
    if null is not None:
        torch.testing.assert_close(null.data, model.clip.encode_text([""]))
        assert null.requires_grad


CAPTIONERS = {
    "implicit": implicit_captioner,
    "empty": empty_captioner,
    "heuristic": partial(heuristic_captioner, ("dog", "cat", "grass"), top=2),
    "blip": blip_captioner,
}


@pytest.mark.parametrize(
    ("captioner", "learnable", "timesteps"),
    [
        ("implicit", True, (0, 100)),
        ("implicit", False, (500,)),
        ("empty", False, "learnable"),
        ("heuristic", False, (500,)),
        ("blip", True, (0,)),
    ],
)
def test_captioners_condition_all_steps(captioner: str, learnable: bool, timesteps: Any) -> None:
    """Trainable parameters before the UNet receive gradients through it."""
    model = tiny_models.odise(captioner=CAPTIONERS[captioner](learnable_time=learnable), timesteps=timesteps)
    steps = len(timesteps) if isinstance(timesteps, tuple) else 1
    assert len(model.backbone.pyramid.projections) == 2 + 4 * steps + 2
    encoders = [module for module in model.modules() if isinstance(module, CLIPTextModel)]
    assert len(encoders) == (captioner in ("heuristic", "blip"))
    assert not any(p.requires_grad for encoder in encoders for p in encoder.parameters())
    features = model.backbone(torch.rand(1, 3, 64, 64), ["a dog on green grass"])
    sum(level.square().mean() for level in features).backward()
    gates = {n: p for n, p in model.backbone.captioner.named_parameters() if n.startswith("alpha")}
    learned = learnable or timesteps == "learnable"
    assert ("alpha_time" in gates, "alpha_cond" in gates) == (learned, captioner == "implicit")
    for name, gate in gates.items():
        assert gate.grad is not None, name
        assert gate.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("changes", "message"), [
    ({"supervision": "boxes"}, "model.supervision=boxes"),
    ({"timesteps": (1000,)}, r"backbone.timesteps=\[1000\]"),
    ({"input_size": 100}, "backbone.input_size=100"),
    ({"weights": "nowhere.ckpt"}, r"nowhere\.ckpt"),
    ({"captioner": blip_captioner(True, "nobody/nothing")}, r"captioner\.weights=nobody/nothing"),
    ({"captioner": blip_captioner(), "architecture": tiny_models.LDM}, "captioner=implicit"),
    ({"unet": "nowhere.safetensors"}, r"nowhere\.safetensors"),
])  # fmt: skip
def test_invalid_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        tiny_models.odise(**changes)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ClipSettings(trained="no"), "clip.trained=no"),
        (lambda: HeadSettings(query_norm="no"), "model.head.query_norm=no"),
        (lambda: ClassifierSettings(mean_of_names="no"), "fusion.mean_of_names=no"),
        (lambda: tiny_models.odise(published_quirks="no"), "model.published_quirks=no"),
        (lambda: tiny_models.odise(family="vit", trained="no"), "backbone.trained=no"),
    ],
)
def test_flags_are_true_or_false(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()
