from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import odise
from torch import nn

from odise_pl.errors import SettingError
from odise_pl.training.optimization import (
    OptimizerSettings,
    accumulation_steps,
    build_optimizer,
    choose_batch_size,
    learning_rate_factor,
    parameter_groups,
)


def test_norms_and_biases_have_no_weight_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.MultiheadAttention(2, 1))
    decayed, plain = parameter_groups(model, 0.05)[1.0]
    names = {id(p): n for n, p in model.named_parameters()}
    attention = {"3.in_proj_weight", "3.in_proj_bias", "3.out_proj.weight"}
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", *attention}
    norms = {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert {names[id(p)] for p in plain["params"]} == {"0.bias", "3.out_proj.bias", *norms}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


@pytest.mark.parametrize("algorithm", ["adamw", "muon", "sgd"])
def test_optimizer_holds_every_trainable_parameter_once(algorithm: str) -> None:
    model = odise()
    optimizer = build_optimizer(model, OptimizerSettings(algorithm, lr=1e-4), 16)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-5)  # by the global batch


def test_sgd_steps_by_momentum_and_decay() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(2.0)
    settings = OptimizerSettings("sgd", momentum=0.5, lr=0.1, reference_batch=4, weight_decay=0.1)
    optimizer = build_optimizer(layer, settings, 8)  # so the rate is 0.2
    weight, velocity = 2.0, 0.0
    for gradient in (1.0, -3.0):
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        velocity = 0.5 * velocity + gradient + 0.1 * weight
        weight -= 0.2 * velocity
        assert layer.weight.item() == pytest.approx(weight)


def test_muon_turns_the_steps_of_matrices_and_adamw_makes_the_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 16), nn.Conv2d(4, 2, 3))
    before = copy.deepcopy(model)
    optimizer = build_optimizer(
        model, OptimizerSettings("muon", lr=1e-2, reference_batch=1, weight_decay=0), 1
    )
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    moved = {n: p.detach() - before.get_parameter(n) for n, p in model.named_parameters()}
    # all directions of the gradient count alike, and the step is as large as one of AdamW
    for name, longest in (("1.weight", 16), ("2.weight", 4 * 3 * 3)):
        singular = torch.linalg.svdvals(moved[name].flatten(1)) / (1e-2 * 0.2 * longest**0.5)
        assert torch.all((singular > 0.6) & (singular < 1.3))
    for name in ("0.weight", "1.bias", "2.bias"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(moved[name], -1e-2 * gradient.sign(), rtol=1e-4, atol=0)


def test_muon_continues_from_its_state() -> None:
    torch.manual_seed(0)
    settings = OptimizerSettings("muon", lr=1e-2, reference_batch=1)
    first = nn.Sequential(nn.Conv2d(4, 8, 3), nn.LayerNorm(8))
    gradients = [[torch.randn_like(p) for p in first.parameters()] for _ in range(4)]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: slice) -> None:
        for step in gradients[steps]:
            for parameter, gradient in zip(model.parameters(), step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()

    optimizer = build_optimizer(first, settings, 1)
    train(first, optimizer, slice(2))
    second = copy.deepcopy(first)
    resumed = build_optimizer(second, settings, 1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in [*optimizer.param_groups, *resumed.param_groups]:
        group["lr"] *= 0.5  # as a schedule does
    train(first, optimizer, slice(2, 4))
    train(second, resumed, slice(2, 4))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_parts_have_their_own_learning_rate_and_stay_trainable() -> None:
    model = odise()
    scale = {"pixel_decoder": 0.1, "pixel_decoder.layers": 0, "backbone.captioner": 0}
    optimizer = build_optimizer(model, OptimizerSettings(lr=1e-3, lr_scale=scale), 64)
    rates = rates_of(optimizer)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            wanted = 1e-3
            if name.startswith(("pixel_decoder.layers.", "backbone.captioner.")):
                wanted = 0
            elif name.startswith("pixel_decoder."):
                wanted = 1e-4
            assert rates.pop(id(parameter)) == pytest.approx(wanted), name
    assert not rates
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = rates_of(optimizer).get(id(parameter), 0) == 0
        assert torch.equal(parameter, before[name]) == frozen, name


def rates_of(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_unknown_part_is_named() -> None:
    with pytest.raises(SettingError, match="pixel_decode"):
        build_optimizer(odise(), OptimizerSettings(lr_scale={"pixel_decode": 0}), 8)
    with pytest.raises(SettingError, match="lr_scale"):
        OptimizerSettings(lr_scale={"pixel_decoder": -1})


def test_published_schedule() -> None:
    factor = learning_rate_factor(OptimizerSettings(), 92188)
    assert factor(0) == pytest.approx(0.067)
    assert factor(125) == pytest.approx((0.067 + 1) / 2)
    assert factor(250) == factor(81954) == 1
    assert factor(81955) == pytest.approx(0.1)
    assert factor(88778) == pytest.approx(0.01)
    assert learning_rate_factor(OptimizerSettings(warmup_steps=0), 10)(0) == 1


def test_polynomial_decay_replaces_milestones() -> None:
    factor = learning_rate_factor(OptimizerSettings(power=0.9, warmup_steps=10), 1000)
    assert factor(0) == pytest.approx(0.067)
    for step in (10, 500, 950, 999):
        assert factor(step) == pytest.approx(((1000 - step) / 1000) ** 0.9)
    assert factor(1000) == factor(1001) == 0
    with pytest.raises(SettingError, match=r"optimizer\.power=-1"):
        OptimizerSettings(power=-1)


@pytest.mark.parametrize(("batch", "devices", "steps"), [(2, 8, 4), (2, 32, 1), (1, 1, 64), (64, 1, 1)])
def test_accumulation_steps(batch: int, devices: int, steps: int) -> None:
    assert accumulation_steps(64, batch, devices) == steps


@pytest.mark.parametrize(("global_batch", "devices", "batch"), [(64, 32, 2), (6, 2, 1), (4, 4, 1)])
def test_automatic_batch_size(global_batch: int, devices: int, batch: int) -> None:
    assert choose_batch_size(global_batch, devices) == batch


@pytest.mark.parametrize(("batch", "devices"), [(2, 3), (4, 32)])
def test_impossible_global_batch_is_named(batch: int, devices: int) -> None:
    with pytest.raises(SettingError, match="global_batch=64"):
        accumulation_steps(64, batch, devices)
