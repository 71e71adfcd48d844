from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.heads.mask_decoder import DecoderLayer, MaskDecoder
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from odise_pl.models.ops.position import sine_positions


def features(batch: int = 2) -> PixelFeatures:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(batch, 32, 16 // s, 24 // s, generator=generator) for s in (8, 4, 2)]
    return PixelFeatures(torch.randn(batch, 48, 16, 24, generator=generator), levels)


def decoder(layers: int = 4, object_head: bool = False) -> MaskDecoder:
    torch.manual_seed(1)
    return MaskDecoder(32, 48, 40, queries=6, layers=layers, heads=4, feedforward=64, object_head=object_head)


def test_decoder_layer_equals_formula() -> None:
    torch.manual_seed(2)
    layer = DecoderLayer(32, 4, 64)
    x, query_position = torch.randn(2, 6, 32), torch.randn(6, 32)
    memory, position = torch.randn(2, 10, 32), torch.randn(10, 32)
    hidden = torch.rand(2, 6, 10) > 0.6
    hidden[..., 0] = False
    hidden = hidden.repeat_interleave(4, dim=0)
    ours = layer(x, query_position, memory, position, hidden)
    y = layer.cross_norm(
        x + layer.cross_attention(x + query_position, memory + position, memory, attn_mask=hidden)[0]
    )
    y = layer.self_norm(y + layer.self_attention(y + query_position, y + query_position, y)[0])
    expected = layer.feedforward_norm(y + layer.linear2(F.relu(layer.linear1(y))))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_layers_attend_inside_previous_masks() -> None:
    model, x = decoder(4), features()
    calls: list[tuple[Tensor, ...]] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: calls.append(args))
    outputs = model(x)
    for i, (_, query_position, memory, position, hidden) in enumerate(calls):
        level = x.levels[i % 3]
        small = F.interpolate(outputs[i].mask_logits, level.shape[-2:], mode="bilinear")
        for b in range(2):
            for q in range(6):
                wanted = (small[b, q] < 0).flatten()
                if wanted.all():
                    wanted = torch.zeros_like(wanted)
                for h in range(4):
                    assert torch.equal(hidden[b * 4 + h, q], wanted)
        embedded = level + model.level_embed.weight[i % 3].view(1, -1, 1, 1)
        torch.testing.assert_close(memory, embedded.flatten(2).transpose(1, 2))
        torch.testing.assert_close(position, sine_positions(*level.shape[-2:], 32).flatten(1).T)
        assert torch.equal(query_position, model.query_embed.weight)


def test_query_with_empty_mask_attends_everywhere() -> None:
    logits = torch.full((1, 6, 16, 24), -5.0)
    logits[0, 1, :8] = 5.0
    hidden = decoder()._hidden(logits, torch.Size((4, 6)))
    assert not hidden[:, 0].any()
    assert hidden[:, 1].any()
    assert not hidden[:, 1].all()


def test_prediction_equals_loop_over_queries() -> None:
    model, x = decoder(0), features()
    output = model(x)[0]
    head = model.embedding
    queries = model.norm(model.query_feat.weight)
    for b in range(2):
        for q in range(6):
            mask = torch.einsum("c,chw->hw", model.mask_mlp(queries[q]), x.mask_features[b])
            torch.testing.assert_close(output.mask_logits[b, q], mask, rtol=1e-4, atol=1e-4)
            pooled = x.mask_features[b][:, mask > 0].mean(1)
            joined = queries[q] + head.pool_proj(head.pool_norm(pooled))
            torch.testing.assert_close(output.pooled[b, q], joined, rtol=1e-4, atol=1e-4)
            embed = head.query_mlp(head.query_norm(joined))
            torch.testing.assert_close(output.mask_embed[b, q], embed, rtol=1e-4, atol=1e-4)


def test_mask_embedding_has_no_gradient_to_mask() -> None:
    model = decoder(0)
    model(features())[0].mask_embed.sum().backward()
    assert all(p.grad is None for p in model.mask_mlp.parameters())


def test_logit_scale_is_initialised_and_limited() -> None:
    model = decoder(0)
    assert model(features())[0].logit_scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.embedding.log_scale.fill_(10.0)
    assert model(features())[0].logit_scale.item() == 100


def test_object_head_of_the_caption_model() -> None:
    model = decoder(2, object_head=True)
    outputs = model(features())
    assert model.object_head is not None
    for output in outputs:
        assert output.object_logits is not None
        assert output.object_logits.shape == (2, 6, 2)
    first = model.object_head(model.norm(model.query_feat.weight))
    assert outputs[0].object_logits is not None
    torch.testing.assert_close(outputs[0].object_logits[0], first)
