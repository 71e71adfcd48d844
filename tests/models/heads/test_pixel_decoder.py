from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.heads.pixel_decoder import PixelDecoder
from odise_pl.models.ops.deformable_attention import reference_points
from odise_pl.models.ops.position import sine_positions


def pyramid(height: int = 64, width: int = 96, channels: int = 48) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, height // s, width // s, generator=generator) for s in (4, 8, 16, 32)]


def decoder() -> PixelDecoder:
    torch.manual_seed(1)
    return PixelDecoder([48] * 4, 32, 64, feedforward=48, layers=2, heads=4, points=2)


def test_pixel_decoder_equals_formula() -> None:
    model, (s2, s3, s4, s5) = decoder(), pyramid()
    torch.nn.init.normal_(model.layers[0].attention.sampling_offsets.weight, std=0.1)
    maps = [proj(x) for proj, x in zip(model.input_proj, (s5, s4, s3), strict=True)]
    shapes = [(2, 3), (4, 6), (8, 12)]
    tokens, positions = [], []
    for level, (x, (h, w)) in enumerate(zip(maps, shapes, strict=True)):
        for i in range(h):
            for j in range(w):
                tokens.append(x[:, :, i, j])
                positions.append(sine_positions(h, w, 32)[:, i, j] + model.level_embed[level])
    x, position = torch.stack(tokens, dim=1), torch.stack(positions)
    for layer in model.layers:
        attended = layer.attention(x + position, reference_points(shapes), x, shapes)
        x = F.layer_norm(x + attended, (32,), layer.norm1.weight, layer.norm1.bias)
        inner = layer.linear2(F.relu(layer.linear1(x)))
        x = F.layer_norm(x + inner, (32,), layer.norm2.weight, layer.norm2.bias)
    finest = x[:, 2 * 3 + 4 * 6 :].transpose(1, 2).reshape(2, 32, 8, 12)
    joined = model.lateral(s2) + F.interpolate(finest, (16, 24), mode="bilinear")
    expected = model.mask_features(model.smooth(joined))

    features = model([s2, s3, s4, s5])
    torch.testing.assert_close(features.mask_features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.levels[2], finest, rtol=1e-4, atol=1e-5)
    assert [tuple(level.shape[2:]) for level in features.levels] == shapes
