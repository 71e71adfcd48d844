from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from odise_pl.models.ops.deformable_attention import DeformableAttention, reference_points

SHAPES = [(2, 3), (4, 6), (5, 3)]


def bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Vector [D] at (x, y) in 0..1 of a map [H, W, D], zero outside."""
    height, width, _ = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    value = image.new_zeros(image.shape[2])
    for i in range(height):
        for j in range(width):
            value = value + image[i, j] * (1 - (row - i).abs()).clamp(min=0) * (1 - (column - j).abs()).clamp(
                min=0
            )
    return value


def loop(layer: DeformableAttention, queries: Tensor, reference: Tensor, memory: Tensor,
         shapes: Sequence[tuple[int, int]]) -> Tensor:  # fmt: skip
    """Deformable attention point by point."""
    heads, levels, points = layer.heads, layer.levels, layer.points
    depth = queries.shape[2] // heads
    values = layer.value_proj(memory)
    rows = []
    for b in range(len(queries)):
        for q in range(queries.shape[1]):
            offsets = layer.sampling_offsets(queries[b, q]).view(heads, levels, points, 2)
            weights = layer.attention_weights(queries[b, q]).view(heads, levels * points).softmax(-1)
            mixed = []
            for h in range(heads):
                total, start = queries.new_zeros(depth), 0
                for level, (height, width) in enumerate(shapes):
                    cells = values[b, start : start + height * width, h * depth : (h + 1) * depth]
                    for p in range(points):
                        dx, dy = offsets[h, level, p]
                        x, y = reference[q, 0] + dx / width, reference[q, 1] + dy / height
                        share = weights[h, level * points + p]
                        total = total + share * bilinear(cells.view(height, width, depth), x, y)
                    start += height * width
                mixed.append(total)
            rows.append(layer.output_proj(torch.cat(mixed)))
    return torch.stack(rows).view_as(queries)


def example(dtype: torch.dtype = torch.float64) -> tuple[DeformableAttention, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = DeformableAttention(channels=8, levels=3, heads=2, points=2).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    cells = sum(h * w for h, w in SHAPES)
    return (
        layer,
        torch.randn(2, 5, 8, dtype=dtype),
        torch.rand(5, 2, dtype=dtype),
        torch.randn(2, cells, 8, dtype=dtype),
    )


def test_attention_and_gradients_equal_loop_over_points() -> None:
    layer, queries, reference, memory = example()
    inputs = [queries.requires_grad_(), memory.requires_grad_(), *layer.parameters()]
    results = [function(queries, reference, memory, SHAPES) for function in (layer, partial(loop, layer))]
    torch.testing.assert_close(*results)
    for one, other in zip(*(torch.autograd.grad(r.square().sum(), inputs) for r in results), strict=True):
        torch.testing.assert_close(one, other)


def test_initial_offsets_point_in_all_directions() -> None:
    layer = DeformableAttention(channels=32, levels=2, heads=8, points=4)
    offsets = layer.sampling_offsets(torch.randn(1, 32)).view(8, 2, 4, 2)
    for head in range(8):
        angle = head * math.pi / 4
        direction = torch.tensor([math.cos(angle), math.sin(angle)])
        direction = direction / direction.abs().max()
        for point in range(4):
            for level in range(2):
                torch.testing.assert_close(offsets[head, level, point], (point + 1) * direction)
    weights = layer.attention_weights(torch.randn(1, 32))
    assert torch.equal(weights, torch.zeros_like(weights))


def test_points_stay_exact_under_bfloat16_autocast() -> None:
    # sampled at their centres, alternating cells are unchanged; half a cell off, they are not
    layer = DeformableAttention(channels=1, levels=1, heads=1, points=1)
    torch.nn.init.zeros_(layer.sampling_offsets.bias)
    for projection in (layer.value_proj, layer.output_proj):
        torch.nn.init.ones_(projection.weight)
    shapes = [(1, 300)]
    reference = reference_points(shapes)
    checkers = (torch.arange(300) % 2).float().view(1, 300, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = layer(torch.zeros(1, 300, 1), reference, checkers, shapes)
    torch.testing.assert_close(read.float(), checkers, atol=0.02, rtol=0)


def test_reference_points_are_cell_centres() -> None:
    points = reference_points([(1, 2), (2, 1)])
    torch.testing.assert_close(points, torch.tensor([[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]))
