from __future__ import annotations

import pytest
import torch

from scripts.steps import TrainingStep, peak_gib, published


@pytest.mark.slow
def test_full_size_training_step() -> None:
    torch.manual_seed(0)
    setting = published(512)
    model = setting.model
    frozen = {n: p.detach().double().sum().item() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses, gradient_norm = TrainingStep(setting)()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert len(losses) == 30
    assert losses.isfinite().all()
    assert gradient_norm > 0
    # the captioner's gates start at zero: parameters behind them have no gradient, and biases no weight decay
    closed = ("clip_project", "time_project")
    unmoved = [name for name, before in trained.items() if torch.equal(model.get_parameter(name), before)]
    assert unmoved == [f"backbone.captioner.{name}.linear.bias" for name in closed]
    assert {n: p.double().sum().item() for n, p in model.named_parameters() if n in frozen} == frozen
    assert peak_gib() < 16
