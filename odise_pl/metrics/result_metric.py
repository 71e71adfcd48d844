"""A torchmetrics metric whose result is a frozen dataclass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torchmetrics import Metric


class _Opaque:
    """Carries a result past code that takes collections apart."""

    def __init__(self, result: Any) -> None:
        self.result = result


class ResultMetric(Metric):
    """Base of metrics that compute a dataclass.

    torchmetrics squeezes every tensor in what ``compute`` returns: it cannot rebuild a frozen dataclass, and
    would turn the per-class values of a single class into a scalar. Here the result passes as it is.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        wrapped = super()._wrap_compute(functools.wraps(compute)(lambda: _Opaque(compute())))
        return functools.wraps(compute)(lambda: wrapped().result)
