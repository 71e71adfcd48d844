from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.build import HeadSettings, MaskFormerSettings
from odise_pl.models.heads.maskformer import FPN, MaskFormerDecoder, QueryLayer
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from odise_pl.models.ops.position import sine_positions

WIDTHS = (8, 16, 24, 40)


def pyramid() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, 64 // s, 96 // s, generator=generator)
        for width, s in zip(WIDTHS, (4, 8, 16, 32), strict=True)
    ]


def features() -> PixelFeatures:
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(2, 32, 2, 3, generator=generator)
    return PixelFeatures(torch.randn(2, 48, 16, 24, generator=generator), [level])


def decoder(layers: int = 3, **settings: float | None) -> MaskFormerDecoder:
    torch.manual_seed(1)
    sizes = {"queries": 6, "layers": layers, "heads": 4, "feedforward": 64}
    return MaskFormerDecoder(32, 48, 40, **sizes, **settings).eval()


def group_norm(x: Tensor, channels: int = 64) -> Tensor:
    """GroupNorm with 32 groups, group by group."""
    step = channels // 32
    parts = [x[:, i : i + step] for i in range(0, channels, step)]
    normed = [
        (p - p.mean((1, 2, 3), True)) / (p.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        for p in parts
    ]
    return torch.cat(normed, dim=1)


@torch.no_grad()
def test_fpn_equals_formula() -> None:
    torch.manual_seed(1)
    model, (s2, s3, s4, s5) = FPN(WIDTHS, 64, 48), pyramid()
    x = group_norm(F.conv2d(s5, model.top_down.top.conv.weight, padding=1)).relu()
    for i, level in enumerate((s4, s3, s2)):
        lateral = group_norm(F.conv2d(level, model.top_down.laterals[i].conv.weight))
        doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = group_norm(F.conv2d(lateral + doubled, model.top_down.smooth[i].conv.weight, padding=1)).relu()
    found = model([s2, s3, s4, s5])
    expected = F.conv2d(x, model.mask_features.weight, model.mask_features.bias)
    torch.testing.assert_close(found.mask_features, expected, rtol=1e-4, atol=1e-5)
    (level,) = found.levels
    torch.testing.assert_close(level, F.conv2d(s5, model.level.weight, model.level.bias))


def attention(layer: torch.nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One image's attention [Q, C], head by head and query by query."""
    parts = zip((query, key, value), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    q, k, v = (x @ weight.T + bias for x, weight, bias in parts)
    width = q.shape[1] // layer.num_heads
    rows = []
    for i in range(len(q)):
        heads = []
        for h in range(0, q.shape[1], width):
            scores = [float(q[i, h : h + width] @ key[h : h + width]) / math.sqrt(width) for key in k]
            shares = torch.tensor(scores).softmax(0)
            heads.append(sum(share * row[h : h + width] for share, row in zip(shares, v, strict=True)))
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ layer.out_proj.weight.T + layer.out_proj.bias


def norm(layer: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, (32,), layer.weight, layer.bias)


def slow_layer(layer: QueryLayer, x: Tensor, query: Tensor, memory: Tensor, position: Tensor) -> Tensor:
    """DETR's decoder layer: self-attention, attention to the image, feed-forward net."""
    x = norm(layer.norm1, x + attention(layer.self_attn, x + query, x + query, x))
    x = norm(layer.norm2, x + attention(layer.multihead_attn, x + query, memory + position, memory))
    inner = (x @ layer.linear1.weight.T + layer.linear1.bias).relu()
    return norm(layer.norm3, x + inner @ layer.linear2.weight.T + layer.linear2.bias)


@torch.no_grad()
def test_predictions_equal_loop_over_images_and_queries() -> None:
    model, given = decoder(), features()
    outputs = model(given)
    assert len(outputs) == 3
    queries = model.query_embed.weight
    for b in range(2):
        memory = given.levels[0][b].flatten(1).T
        position = sine_positions(2, 3, 32).flatten(1).T
        x = torch.zeros(6, 32)
        for layer, output in zip(model.layers, outputs, strict=True):
            x = slow_layer(layer, x, queries, memory, position)
            final = norm(model.norm, x)
            torch.testing.assert_close(output.pooled[b], final, rtol=1e-4, atol=1e-5)
            for q in range(6):
                weights = model.mask_mlp(final[q])
                mask = sum(w * channel for w, channel in zip(weights, given.mask_features[b], strict=True))
                torch.testing.assert_close(output.mask_logits[b, q], mask, rtol=1e-4, atol=1e-4)
            first, second = model.embedding.query_mlp.layers
            assert first.out_features == 128
            torch.testing.assert_close(output.mask_embed[b], second(first(final).relu()))


def test_dropout_is_for_training_only() -> None:
    model, given = decoder(dropout=0.5), features()
    assert torch.equal(model(given)[-1].mask_logits, model(given)[-1].mask_logits)
    model.train()
    assert not torch.equal(model(given)[-1].mask_logits, model(given)[-1].mask_logits)


def test_one_layer_embeds_linearly() -> None:
    model = decoder(embed_layers=1)
    (linear,) = model.embedding.query_mlp.layers
    output = model(features())[-1]
    torch.testing.assert_close(output.mask_embed, linear(output.pooled))


@pytest.mark.parametrize(("setting", "scale"), [(100.0, 100), (20.0, 20), (None, 1 / 0.07)])
def test_fixed_scale_is_not_trained(setting: float | None, scale: float) -> None:
    model = decoder(logit_scale=setting)
    assert model(features())[0].logit_scale.item() == pytest.approx(scale)
    assert model.embedding.log_scale.requires_grad is (setting is None)


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(1)
    fpn, model = FPN(WIDTHS, 32, 48), decoder(object_head=True)
    output = model(fpn(pyramid()))[-1]
    assert output.object_logits is not None
    parts = (output.mask_logits, output.mask_embed, output.object_logits, output.logit_scale)
    torch.stack([part.sum() for part in parts]).sum().backward()
    for name, parameter in [*fpn.named_parameters(), *model.named_parameters()]:
        assert parameter.grad is not None, name


@pytest.mark.parametrize(
    ("setting", "value"), [("queries", 0), ("dropout", 2), ("embed_layers", 0), ("logit_scale", 101)]
)
def test_settings_out_of_range_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"model\.head\.{setting}={value}"):
        MaskFormerSettings(**{setting: value})


def test_published_sizes() -> None:
    own = MaskFormerSettings(embed_dim=None)
    assert own.mask_decoder(512, object_head=False).embedding.query_mlp.layers[0].out_features == 1024
    assert own.layers == 6
    assert HeadSettings().layers == 9
