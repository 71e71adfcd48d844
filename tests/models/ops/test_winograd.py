from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.models.ops.winograd import Conv3x3, use_winograd, winograd


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def frozen(inputs: int = 128, outputs: int = 160, bias: bool = True) -> Conv3x3:
    return Conv3x3(inputs, outputs, 3, padding=1, bias=bias).requires_grad_(False)


def calls_conv2d(layer: nn.Module, x: Tensor) -> bool:
    with torch.profiler.profile() as profile:
        layer(x)
    return "aten::conv2d" in {event.name for event in profile.events()}


# one band and several, whole tiles and parts of tiles
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 14), (3, 40), (66, 67), (128, 9), (12, 1030)])
@pytest.mark.parametrize("bias", [True, False])
def test_winograd_equals_convolution(size: tuple[int, int], bias: bool) -> None:
    x, weight, shift = random(2, 5, *size), random(7, 5, 3, 3), random(7) if bias else None
    found = winograd(x, weight, shift)
    assert found.is_contiguous()
    torch.testing.assert_close(found, F.conv2d(x, weight, shift, padding=1), rtol=0, atol=1e-12)


def test_winograd_of_a_transposed_layout() -> None:
    x, weight = random(2, 5, 10, 9).to(memory_format=torch.channels_last), random(7, 5, 3, 3)
    torch.testing.assert_close(winograd(x, weight, None), F.conv2d(x, weight, padding=1), rtol=0, atol=1e-12)


def test_layer_rounds_like_single_precision() -> None:
    layer, x = frozen(), random(2, 128, 33, 34, dtype=torch.float32)
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    error = layer(x) - exact
    assert error.norm() < 3e-6 * exact.norm()
    assert error.abs().max() < 3e-5 * exact.std()


def test_gradient_of_the_input() -> None:
    layer, x = frozen(), random(2, 128, 33, 34, dtype=torch.float32).requires_grad_()
    upstream = random(2, 160, 33, 34, dtype=torch.float32)
    (found,) = torch.autograd.grad(layer(x), x, upstream)
    (exact,) = torch.autograd.grad(
        F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1), x, upstream.double()
    )
    assert (found - exact).norm() < 3e-6 * exact.norm()


def test_frozen_large_single_precision_layer_avoids_conv2d() -> None:
    assert not calls_conv2d(frozen(), random(1, 128, 32, 32, dtype=torch.float32))


@pytest.mark.parametrize("case", ["trained", "narrow", "small", "bfloat16", "autocast"])
def test_other_layers_use_conv2d(case: str) -> None:
    layer, x = frozen(64 if case == "narrow" else 128), random(1, 128, 32, 32, dtype=torch.float32)
    if case == "trained":
        layer.requires_grad_(True)
    elif case == "narrow":
        x = x[:, :64]
    elif case == "small":
        x = x[..., :31]
    elif case == "bfloat16":
        layer, x = layer.to(torch.bfloat16), x.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert calls_conv2d(layer, x)


def test_exported_layer_is_one_convolution() -> None:
    exported = torch.export.export(frozen(), (random(1, 128, 32, 32, dtype=torch.float32),))
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.conv2d.default"]


def test_use_winograd_replaces_3x3_convolutions_only() -> None:
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False)),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    )
    weights = dict(network.named_parameters())
    use_winograd(network)
    replaced = [name for name, module in network.named_modules() if isinstance(module, Conv3x3)]
    assert replaced == ["0", "1.0"]
    after = dict(network.named_parameters())
    assert list(after) == list(weights)
    assert all(after[name] is weight for name, weight in weights.items())
