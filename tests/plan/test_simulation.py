"""Plans against what steps with real tensors take."""

from __future__ import annotations

import gc
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import planned
import pytest
import torch
from torch import Tensor, nn

from odise_pl.allocations import bytes_of
from odise_pl.autosize import demanding_batch
from odise_pl.parallel import blocks
from odise_pl.plan.__main__ import case_of, module_of
from odise_pl.plan.report import Column, sent
from odise_pl.plan.simulation import Case, StepCost, simulate

MIB = 2**20
SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_plan.py"
LABEL, CAPTION = (), ("model=odise_caption",)


def plan(strategy: str, *settings: str, **changes: Any) -> StepCost:
    config = planned.config(*settings)
    case = replace(case_of(config, strategy), **changes)
    return simulate(lambda: module_of(config), case)


@pytest.fixture(scope="module")
def bench() -> Any:
    specification = importlib.util.spec_from_file_location("bench_plan", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["bench_plan"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def label() -> StepCost:
    return plan("single")


def test_a_plan_is_what_the_allocator_gives_out(bench: Any, label: StepCost) -> None:
    agrees(label, bench, *LABEL)


@pytest.mark.slow
def test_so_is_that_of_a_caption_model(bench: Any) -> None:
    agrees(plan("single", *CAPTION), bench, *CAPTION)


def agrees(cost: StepCost, bench: Any, *settings: str) -> None:
    gc.collect()  # what is freed while the profiler looks on would count
    measured = bench.measure([*planned.SMALL, *settings], "single", True)
    assert cost.memory.total == pytest.approx(measured.allocated, rel=0.05)
    fixed = cost.memory.weights + cost.memory.gradients + cost.memory.optimizer
    assert cost.memory.total - fixed == pytest.approx(measured.allocated - fixed, rel=0.15)


def test_weights_gradients_and_moments_are_those_of_the_network(label: StepCost) -> None:
    module, memory = module_of(planned.config()), label.memory
    trained = bytes_of(p for p in module.parameters() if p.requires_grad)
    assert memory.weights == pytest.approx(bytes_of([*module.parameters(), *module.buffers()]), abs=1000)
    assert memory.gradients == trained
    assert memory.optimizer == pytest.approx(2 * trained, rel=0.01)


def test_a_plan_with_fsdp_gathers_what_runs_and_shares_the_rest(label: StepCost) -> None:
    """Blocks are gathered once for every pass through them, and once more where gradients pass."""
    config = planned.config("devices=2")
    shared = plan("fsdp", "devices=2")
    module = module_of(config).train()
    module.training_classes()
    held = {block: [p for p in block.parameters() if p.dim() > 1] for block in blocks(module.model)}
    gathered = 0

    def count(block: nn.Module, _: Any, output: Any) -> None:
        nonlocal gathered
        first = output if isinstance(output, Tensor) else output[0]
        gathered += bytes_of(held[block]) * (2 if first.requires_grad else 1)

    for block in held:
        block.register_forward_hook(count)
    case = case_of(config, "fsdp")
    module.losses(demanding_batch(module, case.image_size, case.batch), module.uniform(0))
    trained = bytes_of(p for p in module.parameters() if p.requires_grad)
    assert case.accumulate == 2
    assert shared.traffic.gathered == pytest.approx(2 * gathered, rel=0.01)
    assert shared.traffic.reduced == pytest.approx(trained, rel=0.01)
    assert shared.traffic.scattered == 0, "frozen weights have no gradients"
    saved = sum(bytes_of(parameters) for parameters in held.values()) / 2
    assert label.memory.weights - shared.memory.weights == pytest.approx(saved, rel=0.02)


@pytest.mark.slow
def test_a_plan_with_ddp_has_buckets_and_averages_gradients(label: StepCost) -> None:
    cost = plan("ddp", "devices=2")
    assert cost.traffic.gathered == cost.traffic.scattered == 0
    assert cost.traffic.reduced == pytest.approx(label.memory.gradients, rel=0.01)
    assert cost.memory.gradients == 2 * label.memory.gradients


@pytest.mark.slow
def test_memory_grows_with_images_as_the_search_for_a_batch_assumes() -> None:
    one, two, four = (plan("single", batch=images).memory.total for images in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.05)


@pytest.mark.slow
def test_recomputing_and_few_windows_need_less() -> None:
    base = plan("single", batch=2, image_size=256).memory.total
    recomputed = plan("single", batch=2, image_size=256, checkpoint_activations=True).memory.total
    assert recomputed < base


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("settings", [LABEL, CAPTION], ids=["label", "caption"])
def test_plans_of_two_ranks_are_what_two_processes_take(
    bench: Any, strategy: str, settings: tuple[str, ...]
) -> None:
    options = [*planned.SMALL, "global_batch=4", "devices=2", *settings]
    cost, case = plan(strategy, *options), case_of(planned.config(*options), strategy)
    measured = bench.measured(options, strategy, True)
    assert cost.memory.total == pytest.approx(measured.allocated, rel=0.15)
    assert 2 * sent(Column(case, cost)) == pytest.approx(measured.sent, rel=0.15, abs=MIB)


@pytest.mark.slow
def test_the_published_run_is_planned_at_full_size() -> None:
    cost = simulate(
        lambda: module_of(planned.configuration([], planned.CONF)), Case(precision="bf16-mixed", batch=1)
    )
    assert 1.3e9 * 2 < cost.memory.weights < 1.6e9 * 4
    assert cost.memory.optimizer == pytest.approx(2 * 4 * 28_067_009, rel=0.01)
    assert torch.tensor(0).is_cpu, "nothing of the plan is left behind"
