from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.backbones.pyramid import Bottleneck
from odise_pl.ops.deformable_attention import DeformableAttention, reference_points
from odise_pl.parity import kinks
from odise_pl.parity.checks import GRADIENT
from odise_pl.parity.gradients import find_turns
from odise_pl.parity.kinks import RELU, SAMPLE, KinkWatch, Place, Seen

SHAPES = [(3, 4), (6, 8), (12, 16)]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """In so small a network hardly an activation is as close as in the real one."""
    monkeypatch.setattr(kinks, "CLOSE", 2e-3)
    monkeypatch.setattr(kinks, "CLOSE_PIXELS", 1e-3)


class Network(nn.Module):
    """A projection and an attention over sampled places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection = Bottleneck(6, 32, 32)
        self.attention = DeformableAttention(32, 3, 4, 2)
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.1)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        tokens = torch.cat([self.projection(x).flatten(2).transpose(1, 2) for x in maps], dim=1)
        F.relu(self.frozen(torch.ones(2)))  # belongs to no trained block of its own
        return self.attention(tokens, reference_points(SHAPES, None), tokens, SHAPES)


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 6, h, w, generator=generator) for h, w in SHAPES]


def loss(output: Tensor) -> Tensor:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return (output * weights).sum()


def step(model: nn.Module, turned: frozenset[Place] = frozenset()) -> tuple[Tensor, Seen]:
    model.zero_grad(set_to_none=True)
    watch = KinkWatch(model, turned)
    with watch:
        output = model(inputs())
    loss(output).backward()
    return output.detach(), watch.seen


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_watching_changes_nothing() -> None:
    model = Network()
    output, _ = step(model)
    watched = gradients(model)
    model.zero_grad(set_to_none=True)
    plain = model(inputs())
    loss(plain).backward()
    torch.testing.assert_close(output, plain.detach())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(watched[name], gradient)


def test_close_decisions_are_noted_where_they_are_taken() -> None:
    model = Network()
    _, seen = step(model)
    assert {(p.block, p.operation) for p in seen.close} == {("projection", RELU), ("attention", SAMPLE)}
    assert len(seen.calls["projection"]) == 3
    # the frozen layer's ReLU is one of the network itself
    assert set(seen.calls) <= {"projection", "attention", ""}
    assert {p.number for p in seen.close if p.operation == SAMPLE} <= {0, 1, 2}
    assert seen.decisions > 10 * len(seen.close)


def by_effect(model: nn.Module, operation: str) -> list[tuple[float, Place]]:
    """Close decisions and how much of a gradient each turns."""
    _, seen = step(model)
    before = gradients(model)
    found = []
    for place in [p for p in seen.close if p.operation == operation][:40]:
        step(model, frozenset({place}))
        after = gradients(model)
        found.append(
            (max(float((after[n] - g).abs().max() / g.abs().max()) for n, g in before.items()), place)
        )
    return sorted(found, key=lambda item: item[0], reverse=True)


@pytest.mark.parametrize("operation", [RELU, SAMPLE])
def test_a_turned_decision_hardly_moves_the_output_but_a_gradient(operation: str) -> None:
    model = Network()
    effect, place = by_effect(model, operation)[0]
    plain, _ = step(model)
    output, _ = step(model, frozenset({place}))
    moved = float((output - plain).abs().max() / plain.abs().max())
    assert 0 < moved < 1e-3
    assert effect > 5e-3
    assert effect > 10 * moved


@pytest.mark.parametrize("operation", [RELU, SAMPLE])
def test_the_decision_that_a_record_took_is_found(operation: str) -> None:
    model = Network()
    _, place = by_effect(model, operation)[0]
    step(model, frozenset({place}))
    record = gradients(model)
    _, seen = step(model)
    assert find_turns(model, seen, record, {"projection", "attention"}) == {place}


def test_two_decisions_are_found_together() -> None:
    model = Network()
    places = frozenset(place for _, place in by_effect(model, RELU)[:2])
    step(model, places)
    record = gradients(model)
    _, seen = step(model)
    assert find_turns(model, seen, record, {"projection"}) == places


def test_what_agrees_is_left_alone() -> None:
    model = Network()
    _, seen = step(model)
    assert find_turns(model, seen, gradients(model), {"projection", "attention"}) == frozenset()


def left_over(model: nn.Module, record: dict[str, Tensor]) -> float:
    """How far gradients are from a record at worst, after decisions were turned to fit it."""
    _, seen = step(model)
    turned = find_turns(model, seen, record, {"projection", "attention"})
    step(model, turned)
    return max(
        float((g - record[n]).abs().max() / record[n].abs().max()) for n, g in gradients(model).items()
    )


@pytest.mark.parametrize("operation", [None, RELU, SAMPLE])
@pytest.mark.parametrize("name", [n for n, p in Network().named_parameters() if p.requires_grad])
def test_an_error_of_two_percent_in_one_gradient_is_not_explained_away(
    name: str, operation: str | None
) -> None:
    """Not even where some decisions do have to be turned, and a hundred times as many are close as usual."""
    model = Network()
    step(model, decisions(operation))
    record = gradients(model)
    record[name] = 1.02 * record[name]
    assert left_over(model, record) > GRADIENT


@pytest.mark.parametrize("operation", [None, RELU, SAMPLE])
def test_a_right_gradient_is_explained(operation: str | None) -> None:
    model = Network()
    step(model, decisions(operation))
    assert left_over(model, gradients(model)) <= GRADIENT


@cache
def decisions(operation: str | None) -> frozenset[Place]:
    """The decision of a kind that matters most, if a kind is given."""
    return frozenset({by_effect(Network(), operation)[0][1]}) if operation else frozenset()


@pytest.mark.parametrize("missing", range(len(SHAPES)))
def test_a_missing_term_is_not_explained_away(missing: int) -> None:
    """The gradient that does not come back from one of the maps."""
    model = Network()
    model.zero_grad(set_to_none=True)
    maps = inputs()
    tokens = [model.projection(x).flatten(2).transpose(1, 2) for x in maps]
    tokens[missing] = tokens[missing].detach()
    all_tokens = torch.cat(tokens, dim=1)
    loss(model.attention(all_tokens, reference_points(SHAPES, None), all_tokens, SHAPES)).backward()
    assert left_over(model, gradients(model)) > 10 * GRADIENT


def test_wrong_gradients_are_not_explained_away() -> None:
    model = Network()
    step(model)
    assert left_over(model, {name: 1.3 * gradient for name, gradient in gradients(model).items()}) > 0.1
