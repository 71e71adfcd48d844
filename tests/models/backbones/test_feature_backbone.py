from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import tiny_models
import tiny_timm
import torch
from torch import Tensor

from odise_pl.errors import SettingError
from odise_pl.models.backbones.captioners import ImplicitCaptioner
from odise_pl.models.backbones.contract import Conditioning
from odise_pl.models.backbones.feature_backbone import FeatureBackbone
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.pyramid import FeaturePyramid
from odise_pl.models.backbones.sliding_window import plan_windows
from odise_pl.models.backbones.timm_features import TimmSettings


@cache
def parts() -> tuple[LatentDiffusionFeatures, ImplicitCaptioner, FeaturePyramid]:
    torch.manual_seed(0)
    features = LatentDiffusionFeatures(tiny_models.diffusion(), (0,))
    captioner = ImplicitCaptioner(tiny_models.clip(), torch.randn(1, 77, 32), 128)
    with torch.no_grad():
        captioner.alpha_cond.fill_(1)
    return features, captioner, FeaturePyramid(features.taps, 128)


def backbone(**settings: Any) -> FeatureBackbone:
    return FeatureBackbone(*parts(), **{"input_size": 128, "window": 64} | settings).eval()


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * b.abs().max().item())


@torch.no_grad()
def one_by_one(model: FeatureBackbone, batch: Tensor, side: int) -> list[Tensor]:
    """Each window of each image alone, merged by a loop."""
    features, captioner, pyramid = parts()
    height, width = batch.shape[-2:]
    totals = [torch.zeros(len(batch), 128, height // s, width // s) for s in (4, 8, 16, 32)]
    counts = [torch.zeros(height // s, width // s) for s in (4, 8, 16, 32)]
    for w in plan_windows(height, width, side):
        for b in range(len(batch)):
            cut = batch[b : b + 1, :, w.top : w.top + side, w.left : w.left + side]
            cut = torch.nn.functional.interpolate(cut, (model.input_size,) * 2, mode="bicubic")
            said = captioner(cut)
            for i, level in enumerate(pyramid(features(cut, said), (side, side))):
                stride = 4 << i
                rows = slice(w.top // stride, (w.top + side) // stride)
                columns = slice(w.left // stride, (w.left + side) // stride)
                totals[i][b, :, rows, columns] += level[0]
                counts[i][rows, columns] += 1 / len(batch)
    return [total / count for total, count in zip(totals, counts, strict=True)]


@pytest.mark.parametrize(
    ("size", "window", "side", "window_batch"), [((64, 96), 64, 64, 3), ((96, 128), None, 96, 0)]
)
def test_windows_equal_single_windows(
    size: tuple[int, int], window: int | None, side: int, window_batch: int
) -> None:
    model, batch = backbone(window=window, window_batch=window_batch), images(*size)
    with torch.no_grad():
        close(model(batch), one_by_one(model, batch, side))


@pytest.mark.parametrize(
    ("training", "window_batch", "expected"),
    [(True, 0, [18]), (False, 0, [8, 8, 2]), (False, 12, [12, 6]), (True, 12, [12, 6])],
)
def test_windows_per_forward_pass(training: bool, window_batch: int, expected: list[int]) -> None:
    model = backbone(window_batch=window_batch, input_size=64).train(training)
    sizes: list[int] = []
    handle = model.features.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.no_grad():
        model(images(64, 576))
    handle.remove()
    assert sizes == expected


@pytest.mark.parametrize(("setting", "value", "message"), [
    ("input_size", 96, "backbone.input_size=96 .* 64"),
    ("input_size", 0, "backbone.input_size=0 .* 64"),
    ("window", 500, "backbone.window=500 .* 32"),
    ("window", 0, "backbone.window=0 .* 32"),
    ("window_batch", -1, "backbone.window_batch=-1"),
])  # fmt: skip
def test_invalid_settings_are_named(setting: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(**{setting: value})


class Listening(torch.nn.Module):
    """Records the caption of each window."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[float, str]] = []

    def forward(self, windows: Tensor, captions: list[str]) -> Conditioning:
        self.heard += zip(windows.mean((1, 2, 3)).tolist(), captions, strict=True)
        return Conditioning(torch.zeros(len(windows), 77, 32), None)


@pytest.mark.parametrize("window_batch", [0, 1, 3])
def test_windows_get_caption_of_their_image(window_batch: int) -> None:
    features, _, pyramid = parts()
    listening = Listening()
    settings = {"input_size": 64, "window": 64, "window_batch": window_batch}
    model = FeatureBackbone(features, listening, pyramid, **settings).train()
    batch = torch.stack([torch.full((3, 64, 128), value) for value in (0.25, 0.75)])
    model(batch, ["dark", "bright"])
    assert len(listening.heard) == 4
    for brightness, caption in listening.heard:
        assert caption == ("dark" if brightness < 0.5 else "bright")


def test_whole_images_of_any_size_need_no_windows() -> None:
    """A trained convolutional network on a rectangle: its own maps, with gradients."""
    name, options = tiny_timm.FAMILIES["convnext"]
    own = TimmSettings(name, options=options, window="whole", channels=None, trained=True, input_size=64)
    backbone = own.build(tiny_models.clip(), None)
    images = torch.rand(2, 3, 64, 128)
    levels = backbone(images)
    assert backbone.pyramid.channels == [8, 16, 32, 64]
    for level, one, stride in zip(levels, backbone.features(images), (4, 8, 16, 32), strict=True):
        assert torch.equal(level, one)
        assert level.shape[2:] == (64 // stride, 128 // stride)
    levels[-1].sum().backward()
    assert all(p.grad is not None for p in backbone.features.model.stages[0].parameters())
    assert not any(m.training for m in backbone.train().features.modules())


@pytest.mark.parametrize(
    ("family", "more"), [("eva", {}), ("vit", {"dynamic_img_size": True})], ids=["rotary", "absolute"]
)
def test_whole_images_for_a_transformer_of_any_size(family: str, more: dict[str, bool]) -> None:
    """On a square, the maps are those of windows of this size."""
    name, options = tiny_timm.FAMILIES[family]
    own = TimmSettings(name, options=options, window=64, channels=128, input_size=64)
    whole = replace(own, window="whole", options={**options, **more})
    torch.manual_seed(0)
    windows = own.build(tiny_models.clip(), None)
    backbone = whole.build(tiny_models.clip(), None)
    backbone.load_state_dict(windows.state_dict())
    image = torch.rand(1, 3, 64, 64)
    for one, other in zip(backbone(image), windows(image), strict=True):
        torch.testing.assert_close(one, other)
    levels = backbone(torch.rand(2, 3, 64, 128))
    assert [level.shape[2:] for level in levels] == [(64 // s, 128 // s) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", {}),
        ("vit_small_patch14_dinov2.lvd142m", {"dynamic_img_size": True}),
    ],
    ids=["fixed size", "patches of 14"],
)
def test_whole_images_need_a_network_of_any_size(name: str, more: dict[str, bool]) -> None:
    own = TimmSettings(name, options={**tiny_timm.VIT, **more}, window="whole", input_size=112)
    with pytest.raises(SettingError, match=r"backbone\.window=whole.*backbone\.window=512"):
        own.build(tiny_models.clip(), None)
