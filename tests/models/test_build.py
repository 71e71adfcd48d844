from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import tiny_models
import torch
from transformers import CLIPTextModel

from odise_pl.models.backbones.captioners import EmptyCaptioner
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
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import ClassifierSettings, Odise
from odise_pl.models.weights import WeightsError


def build(supervision: str = "label", captioner: Any = None, **changes: Any) -> Odise:
    """A tiny network; ``changes`` are settings of the backbone."""
    settings = {"architecture": tiny_models.SD1, "input_size": 64, "window": 64, "channels": 128}
    return build_odise(
        BackboneSettings(**settings | changes),
        ClipSettings(architecture=tiny_models.CLIP),
        captioner or implicit_captioner(),
        tiny_models.HEAD,
        ClassifierSettings(),
        InferenceSettings(),
        supervision,
    )


def full_size(supervision: str) -> Odise:
    """The published sizes, without memory for the weights."""
    with torch.device("meta"):
        return build_odise(
            BackboneSettings(),
            ClipSettings(),
            implicit_captioner(),
            HeadSettings(),
            ClassifierSettings(),
            InferenceSettings(),
            supervision,
        )


def test_the_published_models_frozen_networks_are_held_once() -> None:
    model = full_size("label")
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    # the diffusion model's text encoder has done its work at construction
    assert frozen == 859_520_964 + 83_653_863 + 427_944_193
    assert not any(isinstance(module, CLIPTextModel) for module in model.modules())


def test_the_published_taps() -> None:
    taps = full_size("label").backbone.features.taps
    assert [(tap.channels, tap.stride) for tap in taps] == [
        (512, 4), (512, 8), (2560, 64), (1920, 32), (960, 16), (640, 8), (512, 8), (512, 4)
    ]  # fmt: skip


@pytest.mark.parametrize("supervision", ["label", "caption"])
def test_a_tiny_model_of_each_supervision_builds_and_runs(supervision: str) -> None:
    model = build(supervision)
    outputs = model(torch.rand(1, 3, 64, 64), model.encode_classes((("a",), ("b", "c"))))
    assert outputs[-1].class_logits.shape[2] == (3 if supervision == "label" else 2)
    assert (model.mask_decoder.object_head is None) == (supervision == "label")
    assert (model.text_projection.null_embed is None) == (supervision == "caption")


def test_the_null_embedding_starts_at_the_empty_text() -> None:
    model = build()
    assert model.text_projection.null_embed is not None
    torch.testing.assert_close(model.text_projection.null_embed.data, model.clip.encode_text([""]))
    assert model.text_projection.null_embed.requires_grad


def test_the_captioner_starts_at_the_empty_prompt_of_the_diffusion_model() -> None:
    torch.manual_seed(0)
    one = build()
    torch.manual_seed(0)
    other = build(captioner=empty_captioner())
    assert isinstance(other.backbone.captioner, EmptyCaptioner)
    assert one.backbone.captioner.uncond.shape == (1, 77, 32)
    assert torch.equal(one.backbone.captioner.uncond, other.backbone.captioner.uncond)


def test_a_captioner_without_learnable_time() -> None:
    model = build(captioner=implicit_captioner(learnable_time=False))
    assert model.backbone.captioner.time_project is None


def test_every_step_has_its_own_projections_and_times() -> None:
    model = build(timesteps=(0, 100, 200))
    assert len(model.backbone.pyramid.projections) == 2 + 3 * 4 + 2
    assert model.backbone.captioner.time_project.positional_embedding.shape[1] == 3
    outputs = model(torch.rand(1, 3, 64, 64), model.encode_classes((("a",),)))
    assert outputs[-1].mask_logits.isfinite().all()


CAPTIONERS = {
    "implicit": implicit_captioner,
    "empty": empty_captioner,
    "heuristic": partial(heuristic_captioner, ("dog", "cat", "grass"), top=2),
    "blip": blip_captioner,
}
TIMESTEPS = [(0,), (100,), (500,), (0, 100, 200), "learnable"]


@pytest.mark.parametrize("timesteps", TIMESTEPS, ids=str)
@pytest.mark.parametrize("learnable", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("captioner", CAPTIONERS)
def test_every_captioner_conditions_every_step(captioner: str, learnable: bool, timesteps: Any) -> None:
    """Forward at each setting; what is trained in front of the UNet receives gradients through it."""
    torch.manual_seed(0)
    model = build(captioner=CAPTIONERS[captioner](learnable_time=learnable), timesteps=timesteps)
    features = model.backbone(torch.rand(1, 3, 64, 64), ["a dog on green grass"])
    sum(level.square().mean() for level in features).backward()
    gates = {n: p for n, p in model.backbone.captioner.named_parameters() if n.startswith("alpha")}
    learned = learnable or timesteps == "learnable"
    assert ("alpha_time" in gates, "alpha_cond" in gates) == (learned, captioner == "implicit")
    for name, gate in gates.items():
        assert gate.grad is not None, name
        assert gate.grad.abs().sum() > 0, name


def test_the_text_encoder_stays_only_where_sentences_differ() -> None:
    encoders = {
        name: [m for m in build(captioner=make()).modules() if isinstance(m, CLIPTextModel)]
        for name, make in CAPTIONERS.items()
    }
    assert {name: len(found) for name, found in encoders.items()} == {
        "implicit": 0,
        "empty": 0,
        "heuristic": 1,
        "blip": 1,
    }
    assert not any(p.requires_grad for p in encoders["heuristic"][0].parameters())


def test_a_missing_blip_is_named() -> None:
    with pytest.raises(WeightsError, match=r"captioner\.weights=nobody/nothing"):
        build(captioner=blip_captioner(on_the_fly=True, weights="nobody/nothing"))


def test_stable_diffusion_2_builds_and_runs() -> None:
    model = build(architecture=tiny_models.SD2)
    outputs = model(torch.rand(1, 3, 64, 64), model.encode_classes((("a",),)))
    assert outputs[-1].mask_logits.isfinite().all()


@pytest.mark.parametrize(("changes", "message"), [
    ({"supervision": "boxes"}, "model.supervision=boxes: choose one of label, caption"),
    ({"timesteps": (1000,)}, r"backbone.timesteps=\[1000\]"),
    ({"input_size": 100}, "backbone.input_size=100 must be a multiple of 64"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_missing_weights_are_named() -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.ckpt"):
        build(weights="nowhere.ckpt")
