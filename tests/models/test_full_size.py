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


@pytest.mark.slow
def test_full_size_training_step() -> None:
    torch.manual_seed(0)
    model = script().build()
    frozen = {n: p.detach().double().sum().item() for n, p in model.named_parameters() if not p.requires_grad}
    report = script().step(model)
    assert report.frozen_gradients == 0
    assert report.missing_gradients == 0
    assert len(report.losses) == 30
    assert torch.tensor(report.losses).isfinite().all()
    assert report.gradient_norm > 0
    # the captioner's gates start at zero: parameters behind them have no gradient, and biases no weight decay
    closed = ("clip_project", "time_project")
    assert report.unmoved == [f"backbone.captioner.{name}.linear.bias" for name in closed]
    assert {n: p.double().sum().item() for n, p in model.named_parameters() if n in frozen} == frozen
    assert report.peak_gib < 16
