from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from odise_pl.models.ops.deformable_attention import DeformableAttention, reference_points, sample_and_mix

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
    """One point at a time."""
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


def test_attention_is_that_of_a_loop_over_points() -> None:
    layer, queries, reference, memory = example()
    torch.testing.assert_close(
        layer(queries, reference, memory, SHAPES), loop(layer, queries, reference, memory, SHAPES)
    )


def test_gradients_are_those_of_a_loop_over_points() -> None:
    layer, queries, reference, memory = example()
    inputs = [queries.requires_grad_(), memory.requires_grad_(), *layer.parameters()]
    ours = torch.autograd.grad(layer(queries, reference, memory, SHAPES).square().sum(), inputs)
    theirs = torch.autograd.grad(loop(layer, queries, reference, memory, SHAPES).square().sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_sampling_passes_gradcheck() -> None:
    torch.manual_seed(1)
    shapes = [(2, 3), (3, 2)]
    values = torch.randn(1, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(1, 2, 2, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, 2, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v, x, w: sample_and_mix(v, shapes, x, w), (values, locations, weights)
    )


def test_it_starts_by_looking_evenly_in_all_directions() -> None:
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


def test_bfloat16_autocast_keeps_the_places_of_points_exact() -> None:
    # read at their centres, alternating cells come back as they are; half a cell beside it they do not
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


def test_bfloat16_autocast_trains() -> None:
    layer, queries, reference, memory = example(torch.float32)
    exact = layer(queries, reference, memory, SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = layer(queries, reference, memory, SHAPES)
    rough.float().square().sum().backward()
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_whole_bfloat16_model_works() -> None:
    layer, queries, reference, memory = example(torch.bfloat16)
    assert layer(queries, reference.float(), memory, SHAPES).dtype == torch.bfloat16


def test_it_runs_on_the_meta_device() -> None:
    layer, queries, reference, memory = (x.to("meta") for x in example(torch.float32))
    assert layer(queries, reference, memory, SHAPES).shape == (2, 5, 8)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_without_a_break_in_the_graph(backend: str) -> None:
    layer, queries, reference, memory = example(torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(
        compiled(queries, reference, memory, SHAPES), layer(queries, reference, memory, SHAPES)
    )


def test_reference_points_are_the_centres_of_the_cells() -> None:
    points = reference_points([(1, 2), (2, 1)])
    torch.testing.assert_close(points, torch.tensor([[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]))


def test_channels_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="10 channels cannot be split over 4 heads"):
        DeformableAttention(channels=10, heads=4)
