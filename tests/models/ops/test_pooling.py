from __future__ import annotations

import pytest
import torch

from odise_pl.models.ops.pooling import masked_mean


def test_masked_mean_equals_loop() -> None:
    torch.manual_seed(0)
    features, masks = torch.randn(2, 3, 4, 5), torch.rand(2, 6, 4, 5) > 0.5
    pooled = masked_mean(features, masks)
    for b in range(2):
        for q in range(6):
            torch.testing.assert_close(pooled[b, q], features[b][:, masks[b, q]].mean(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_empty_mask_pools_to_zero(dtype: torch.dtype) -> None:
    pooled = masked_mean(torch.ones(1, 2, 4, 4, dtype=dtype), torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    assert torch.equal(pooled.float(), torch.zeros(1, 1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_mask_pools_exactly_in_low_precision(dtype: torch.dtype) -> None:
    # 256 * 256 cells are more than float16 can count
    features, masks = torch.ones(1, 2, 256, 256, dtype=dtype), torch.ones(1, 1, 256, 256, dtype=torch.bool)
    with torch.autocast("cpu", dtype=dtype):
        pooled = masked_mean(features, masks)
    torch.testing.assert_close(pooled.float(), torch.ones(1, 1, 2), rtol=1e-3, atol=0)


def test_mean_under_weights_equals_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, generator=generator)
    logits = torch.randn(2, 6, 4, 5, generator=generator)
    means = masked_mean(features, logits.float().sigmoid())
    for feature, rows, found in zip(features, logits.sigmoid(), means, strict=True):
        for weight, mean in zip(rows, found, strict=True):
            cells = [(y, x) for y in range(4) for x in range(5)]
            total = sum(float(weight[cell]) for cell in cells)
            expected = sum(weight[cell] * feature[:, cell[0], cell[1]] for cell in cells) / total
            torch.testing.assert_close(mean, expected)


def test_mean_under_tiny_weights_is_finite() -> None:
    features, logits = torch.randn(1, 3, 4, 4).half(), torch.full((1, 1, 4, 4), -200.0).half()
    assert torch.equal(masked_mean(features, logits.float().sigmoid()), torch.zeros(1, 1, 3).half())
