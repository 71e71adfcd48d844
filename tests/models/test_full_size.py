from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "full_size_step.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_size_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size_step"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("supervision", "total"), [("label", 28_067_009), ("caption", 28_066_755)])
def test_published_number_of_parameters(supervision: str, total: int) -> None:
    with torch.device("meta"):  # shapes without memory
        model = script().build(supervision)
    assert script().parameters_by_part(model) == {
        "captioner": 1_695_744,
        "feature projections": 5_873_664,
        "pixel decoder": 5_577_152,
        "decoder self-attention": 2_373_120,
        "decoder cross-attention": 2_373_120,
        "decoder feed-forward": 9_462_528,
        "queries, levels, norm": 52_480,
        "mask MLP": 197_376,
        "mask-embedding head": 264_193,
        "text projection": 196_864,
        "null embedding": 768 if supervision == "label" else 0,
        "object head": 514 if supervision == "caption" else 0,
    }
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == total


@pytest.mark.slow
def test_training_step_at_full_size() -> None:
    torch.manual_seed(0)
    model = script().build()
    frozen = {n: p.detach().double().sum().item() for n, p in model.named_parameters() if not p.requires_grad}
    report = script().step(model)
    assert report.frozen_gradients == 0
    assert report.missing_gradients == 0
    assert len(report.losses) == 30
    assert torch.tensor(report.losses).isfinite().all()
    assert report.gradient_norm > 0
    # the captioner's gates start closed: nothing behind them has a gradient yet, and biases do not decay
    closed = ("clip_project", "time_project")
    assert report.unmoved == [f"backbone.captioner.{name}.linear.bias" for name in closed]
    assert {n: p.double().sum().item() for n, p in model.named_parameters() if n in frozen} == frozen
    assert report.peak_gib < 16
