from __future__ import annotations

import torch
from torch.nn import functional as F

from odise_pl.models.heads.layers import MLP, ConvNorm


def test_mlp() -> None:
    mlp, x = MLP(5, 7, 3, layers=3), torch.randn(2, 5)
    first, second, third = mlp.layers
    torch.testing.assert_close(mlp(x), third(F.relu(second(F.relu(first(x))))))
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(7, 5), (7, 7), (3, 7)]


def test_conv_norm_normalises_before_relu() -> None:
    torch.manual_seed(0)
    layer, x = ConvNorm(4, 32, 3, relu=True), torch.randn(2, 4, 5, 6)
    plain = F.conv2d(x, layer.conv.weight, padding=1)
    normed = (plain - plain.mean((2, 3), keepdim=True)) / (
        plain.var((2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(layer(x), normed.clamp(min=0))
    assert layer.conv.bias is None
    assert ConvNorm(4, 32, bias=True).conv.bias is not None
