from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
import tiny_timm
import torch
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones.contract import Conditioning
from odise_pl.models.build import (
    BackboneSettings,
    GroupViTSettings,
    JointSettings,
    TimmSettings,
    implicit_captioner,
)
from odise_pl.models.weights import WeightsError

DIFFUSION = BackboneSettings(architecture=tiny_models.SD1, input_size=64)
OTHER = TimmSettings("vit_tiny_patch16_224.augreg_in21k", options=tiny_timm.VIT, input_size=96)
TWO = JointSettings(DIFFUSION, OTHER, input_size=64, window=64, channels=128)


def test_maps_are_those_of_both_networks() -> None:
    torch.manual_seed(0)
    joint, condition = TWO.load()
    torch.manual_seed(0)
    (first, wanted), (second, _) = DIFFUSION.load(), OTHER.load()
    assert condition is not None
    assert wanted is not None
    assert torch.equal(condition.uncond, wanted.uncond)
    context = wanted.uncond.expand(2, -1, -1).clone().requires_grad_()
    images = torch.rand(2, 3, 64, 64)
    alone = [*first(images, Conditioning(context)), *second(F.interpolate(images, (96, 96), mode="bicubic"))]
    together = joint(images, Conditioning(context))
    assert len(joint.taps) == len(together) == 12
    for tap, one, other in zip(joint.taps, together, alone, strict=True):
        torch.testing.assert_close(one, other)
        assert one.requires_grad == tap.name.startswith("0.unet.")
    own = [len(list(part.blocks())) for part in (joint, first, second)]
    assert own[0] == own[1] + own[2]


def test_levels_are_sums_of_both_pyramids() -> None:
    backbone = TWO.build(tiny_models.clip(), implicit_captioner())
    images = torch.rand(2, 3, 64, 64)
    levels = backbone(images)
    maps = backbone.features(images, backbone.captioner(images))
    first, second = backbone.pyramid.parts
    parts = [first(maps[:8], (64, 64)), second(maps[8:], (64, 64))]
    for level, one, other in zip(levels, *parts, strict=True):
        torch.testing.assert_close(level, one + other)
    sum(level.square().mean() for level in levels).backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    simple = replace(TWO, second=replace(OTHER, pyramid="simple")).build(
        tiny_models.clip(), implicit_captioner()
    )
    assert [x.shape for x in simple(images)] == [x.shape for x in levels]


def test_one_of_them_can_be_trained() -> None:
    joint, condition = replace(TWO, second=replace(OTHER, trained=True)).load()
    assert condition is not None
    assert not joint.train().training
    context = condition.uncond.expand(2, -1, -1)
    maps = joint(torch.rand(2, 3, 64, 64), Conditioning(context))
    sum(one.square().mean() for one in maps).backward()
    first, second = joint.networks
    assert not first.trained
    assert all(p.grad is not None for p in second.parameters())


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(SettingError, match=r"backbone\.first, backbone\.second"):
        replace(TWO, second=DIFFUSION)
    with pytest.raises(SettingError, match=r"backbone\.channels=null"):
        replace(TWO, channels=None)
    with pytest.raises(SettingError, match=r"^backbone\.second\.model=vit_of_nobody"):
        replace(TWO, second=replace(OTHER, model="vit_of_nobody")).load()
    with pytest.raises(WeightsError, match=r"not found: my-backbone\.pth$"):
        replace(TWO, second=replace(OTHER, weights="my-backbone.pth")).load()
    with pytest.raises(SettingError, match=r"backbone\.second\.input_size=100"):
        replace(TWO, second=replace(OTHER, input_size=100)).load()
    with pytest.raises(SettingError, match=r"captioner=empty"):
        TWO.build(tiny_models.clip(), None)
    both = replace(TWO, first=OTHER)
    with pytest.raises(SettingError, match=r"captioner=none"):
        both.build(tiny_models.clip(), implicit_captioner())
    assert len(both.build(tiny_models.clip(), None)(torch.rand(1, 3, 64, 64))) == 4


def test_networks_without_features_are_refused() -> None:
    with pytest.raises(SettingError, match=r"backbone\.second: a GroupViTSettings .* choose another"):
        replace(TWO, second=GroupViTSettings())
