from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.backbones.pyramid import Bottleneck, FeaturePyramid, Tap

TAPS = [Tap("a", 16, 2), Tap("b", 8, 4), Tap("c", 24, 8), Tap("d", 8, 16), Tap("e", 8, 8), Tap("f", 12, 64)]


def normed(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.group_norm(F.conv2d(x, weight, padding=weight.shape[-1] // 2), 32, scale, shift)


@pytest.mark.parametrize(("inside", "outside"), [(16, 64), (64, 64)])
def test_bottleneck_equals_its_formula(inside: int, outside: int) -> None:
    torch.manual_seed(0)
    block = Bottleneck(inside, outside, 32)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    state, x = block.state_dict(), torch.randn(2, inside, 6, 5)

    def step(name: str, value: Tensor) -> Tensor:
        return normed(value, *(state[f"{name}.{p}"] for p in ("weight", "norm.weight", "norm.bias")))

    inner = step("conv3", F.relu(step("conv2", F.relu(step("conv1", x)))))
    short = x if inside == outside else step("shortcut", x)
    torch.testing.assert_close(block(x), F.relu(inner + short), rtol=1e-4, atol=1e-4)


def test_taps_of_one_stride_are_summed() -> None:
    torch.manual_seed(1)
    pyramid = FeaturePyramid(TAPS, channels=128)
    # a window of 64 pixels, resized to 128
    features = [torch.randn(2, tap.channels, 128 // tap.stride, 128 // tap.stride) for tap in TAPS]
    levels = pyramid(features, (64, 64))
    assert [tuple(x.shape) for x in levels] == [(2, 128, 64 // s, 64 // s) for s in (4, 8, 16, 32)]

    def projected(i: int, side: int) -> Tensor:
        step = features[i].shape[-1] / side
        index = (torch.arange(side) * step).long()
        return pyramid.projections[i](features[i][..., index, :][..., index])

    # strides outside of 4..32 are clamped
    expected = [
        projected(0, 16) + projected(1, 16),
        projected(2, 8) + projected(4, 8),
        projected(3, 4),
        projected(5, 2),
    ]
    for level, other in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, other)


def test_missing_stride_is_named() -> None:
    with pytest.raises(ValueError, match=r"no feature of stride \[16\]"):
        FeaturePyramid([tap for tap in TAPS if tap.stride != 16], 128)
