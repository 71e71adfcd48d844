from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.heads.dense import ASPP, DENSE, DPT, DeepLab, PixelEmbedding
from odise_pl.models.heads.settings import DenseSettings

WIDTHS = [16, 24, 32, 40]


def pyramid(height: int = 64, width: int = 96) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    strides = zip(WIDTHS, (4, 8, 16, 32), strict=True)
    return [torch.randn(2, c, height // s, width // s, generator=random) for c, s in strides]


@pytest.mark.parametrize(("kind", "stride"), [("fpn", 4), ("dpt", 2), ("aspp", 32), ("deeplab", 4)])
def test_every_map_and_weight_is_used(kind: str, stride: int) -> None:
    torch.manual_seed(0)
    head = DENSE[kind](WIDTHS, 32)
    inputs = [x.requires_grad_() for x in pyramid()]
    result = head(inputs)
    assert result.shape == (2, 32, 64 // stride, 96 // stride)
    result.square().sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    used = {"aspp": [3], "deeplab": [0, 3]}.get(kind, [0, 1, 2, 3])
    assert [i for i, x in enumerate(inputs) if x.grad is not None] == used


def norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    """Group normalisation by its definition."""
    groups = x.unflatten(1, (layer.num_groups, -1)).flatten(2)
    mean, variance = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
    flat = ((groups - mean) / (variance + layer.eps).sqrt()).view_as(x)
    return flat * layer.weight[:, None, None] + layer.bias[:, None, None]


@torch.no_grad()
def test_dpt_fuses_from_coarse_to_fine() -> None:
    head, levels = DPT(WIDTHS, 32), pyramid()

    def unit(x: Tensor, module: nn.Sequential) -> Tensor:
        y = x
        for part in module[1], module[3]:
            y = norm(F.conv2d(y.clamp(min=0), part.conv.weight, padding=1), part.norm)
        return x + y

    maps = [F.conv2d(x, conv.weight, padding=1) for x, conv in zip(levels[::-1], head.laterals, strict=True)]
    x = maps[0]
    for i in range(4):
        if i:
            x = x + unit(maps[i], head.skips[i - 1])
        x = F.interpolate(unit(x, head.units[i]), scale_factor=2, mode="bilinear", align_corners=True)
        x = F.conv2d(x, head.outs[i].weight, head.outs[i].bias)
    torch.testing.assert_close(head(levels), x, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_aspp_sums_dilated_convolutions() -> None:
    head, levels = ASPP(WIDTHS, 8), pyramid(32 * 9, 32 * 8)
    x, expected = levels[-1], torch.zeros(2, 8, 9, 8)
    for conv, rate in zip(head.convs, (6, 12, 18, 24), strict=True):
        for row in range(9):
            for column in range(8):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        y, z = row + rate * dy, column + rate * dx
                        if 0 <= y < 9 and 0 <= z < 8:
                            expected[:, :, row, column] += x[:, :, y, z] @ conv.weight[:, :, dy + 1, dx + 1].T
        expected += conv.bias[:, None, None]
    torch.testing.assert_close(head(levels), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_deeplab_joins_branches_and_the_finest_map() -> None:
    head, levels = DeepLab(WIDTHS, 32).eval(), pyramid()

    def conv(x: Tensor, part: nn.Module, rate: int = 0) -> Tensor:
        return norm(F.conv2d(x, part.conv.weight, padding=rate, dilation=max(rate, 1)), part.norm).clamp(
            min=0
        )

    fine, coarse = levels[0], levels[-1]
    joined = [conv(coarse, part, rate) for part, rate in zip(head.branches, (0, 6, 12, 18), strict=True)]
    mean = torch.stack([coarse[:, :, y, x] for y in range(2) for x in range(3)]).mean(0)[:, :, None, None]
    image = F.conv2d(mean, head.image.weight, head.image.bias).clamp(min=0)
    joined.append(image.expand_as(joined[0]))
    x = conv(torch.cat(joined, 1), head.join[0])
    x = torch.cat([F.interpolate(x, fine.shape[-2:], mode="bilinear"), conv(fine, head.low)], 1)
    for part in head.decoder:
        x = conv(x, part, 1)
    torch.testing.assert_close(head(levels), x, rtol=1e-3, atol=1e-4)


def test_cells_are_embedded_in_the_order_of_the_map() -> None:
    embedding = PixelEmbedding(8, 5, logit_scale=20.0)
    features = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    (output,) = embedding(features)
    assert output.mask_logits.shape == (2, 0, 3, 4)
    assert output.logit_scale.item() == pytest.approx(20)
    assert not embedding.log_scale.requires_grad
    weight = embedding.embedding.weight[:, :, 0, 0]
    for cell in range(12):
        expected = features[:, :, cell // 4, cell % 4] @ weight.T + embedding.embedding.bias
        torch.testing.assert_close(output.mask_embed[:, cell], expected)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"kind": "unet"}, "kind=unet"), ({"cosine": 1}, "cosine"), ({"logit_scale": 0}, "scale")],
)
def test_invalid_settings_are_named(settings: dict[str, object], word: str) -> None:
    with pytest.raises(SettingError, match=word):
        DenseSettings(**settings)  # type: ignore[arg-type]
