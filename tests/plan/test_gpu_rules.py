"""Autocast by the rules for GPUs, held against PyTorch's own: tensors without data need no GPU for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from odise_pl.plan.gpu_rules import gpu_autocast

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, x[0, 0]),
    "matmul": lambda x: x @ x,
    "einsum": lambda x: torch.einsum("bcij,bdij->bcd", x, x),
    "conv2d": lambda x: F.conv2d(x, x[:8]),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "group_norm": lambda x: F.group_norm(x, 4),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "sum": lambda x: x.sum(),
    "sum over rows": lambda x: x.sum(1),
    "mean": lambda x: x.mean(),
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "power": lambda x: x**2,
    "softplus": F.softplus,
    "normalize": lambda x: F.normalize(x, dim=-1),
    "bilinear": lambda x: F.interpolate(x, (4, 4), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, (4, 4), mode="bicubic"),
    "nearest": lambda x: F.interpolate(x, (4, 4)),
    "cross_entropy": lambda x: F.cross_entropy(x[0, 0], torch.zeros(8, dtype=torch.int64, device=x.device)),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy_with_logits(x, x),
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "product": lambda x: x * x,
    "cat": lambda x: torch.cat([x, x.float()]),
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": lambda x: x.tanh(),
    "grid_sample": lambda x: F.grid_sample(x, x[..., :2], align_corners=False),
}


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """Of a GPU also where there is none."""
    before = torch.is_autocast_enabled(device)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before)
        torch.clear_autocast_cache()


def outcome(name: str, device: str, dtype: torch.dtype) -> torch.dtype | str:
    with FakeTensorMode(), autocast(device):
        try:
            return CALLS[name](torch.empty(8, 8, 8, 8, dtype=dtype, device=device)).dtype
        except RuntimeError:
            return "refused"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_rounded_is_what_a_gpu_rounds(name: str, dtype: torch.dtype) -> None:
    with gpu_autocast():
        found = outcome(name, "cpu", dtype)
    assert found == outcome(name, "cuda", dtype)


def test_a_processor_has_rules_of_its_own_again_afterwards() -> None:
    def norm() -> torch.dtype:
        return outcome("group_norm", "cpu", torch.bfloat16)  # type: ignore[return-value]

    before = norm()
    with gpu_autocast():
        assert norm() == torch.float32 != before
    assert norm() == before


def test_gradients_flow_through_what_is_not_rounded() -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with gpu_autocast(), torch.autocast("cpu", torch.bfloat16):
        F.group_norm(x, 2).square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.abs().sum() > 0
