"""Comparisons with a record, and their tolerances.

Differences are relative to the largest recorded value. With another convolution library, the original's own
results change by 5e-6 (features), 1e-5 (masks), 1.3e-6 (losses) and 1.1e-3 (gradient norms). Single
gradient elements change by up to 7 % of the largest, because rounding moves ReLUs and sampling points
across thresholds; so gradients are compared by norm and direction. ``STAGE``, ``LOSS`` and ``STEP`` leave a
factor of 5 to 20.

The mask decoder thresholds its masks, so rounding of a logit near zero can flip a decision. A flip changes
one query by up to 5 %, and the others slightly through self-attention. If all masks of a training step are
recorded, those are thresholded and the strict tolerances hold
(:class:`~tests.parity.predictions.RecordedThresholds`). Otherwise a share of the values may differ by more.
The ``FLIPPED`` tolerances were measured on the small records with noise on the feature pyramid that changes
masks by 1e-5 (as rounding does) to 1e-4. In 720 runs at most 22 % of a prediction changed by more than
1e-3; in 240 of them, 10 % of the instance scores changed by more than 1e-2 and 1 % of a panoptic map
changed. In 30 training steps, losses changed by up to 1.5e-3, gradient norms by 2.3e-2 and directions by
1.9e-3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Name, our tensor, and the recorded tensor or None.
Compared = tuple[str, Tensor, Tensor | None]


@dataclass(frozen=True)
class Tolerance:
    """Allowed differences from a record.

    Attributes:
        value: largest difference of a value.
        share: fraction of the values that may differ by more.
        pixels: fraction of the elements of discrete maps that may differ.
    """

    value: float
    share: float = 0.0
    pixels: float = 1e-3


class StepTolerance(NamedTuple):
    """Allowed differences of a training step; ``direction`` is 1 - cosine of a gradient."""

    outputs: Tolerance
    loss: Tolerance
    norm: float
    direction: float


EQUAL = Tolerance(0.0, pixels=0.0)
STAGE = Tolerance(1e-4)
LOSS = Tolerance(1e-5)
STEP = StepTolerance(STAGE, LOSS, norm=5e-3, direction=5e-4)
LATER_STEPS = Tolerance(5e-4)  # of total losses; a learning rate that is 1 % off changes them by 1e-3

FLIPPED = Tolerance(1e-3, share=0.25)
FLIPPED_RESULTS = Tolerance(1e-2, share=0.1, pixels=0.05)
FLIPPED_STEP = StepTolerance(FLIPPED, Tolerance(2e-3), norm=2.5e-2, direction=2.5e-3)


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        stage: what was compared.
        difference: largest difference, or fraction that differs; infinite for NaN and other shapes.
        tolerance: largest allowed difference.
        note: details, e.g. the name of the worst tensor.
    """

    stage: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the difference is within tolerance."""
        return self.difference <= self.tolerance


def compare(stage: str, ours: Tensor, recorded: Tensor | None, tolerance: Tolerance = STAGE) -> list[Check]:
    """One check, or none if nothing was recorded."""
    return worst(stage, [("", ours, recorded)], tolerance)


def worst(stage: str, pairs: Iterable[Compared], tolerance: Tolerance = STAGE) -> list[Check]:
    """One check of all recorded tensors, or none if nothing was recorded."""
    found = {name: _differences(own, held) for name, own, held in pairs if held is not None}
    largest = {name: float(x.max()) if x.numel() else 0.0 for name, x in found.items()}
    if not tolerance.share:
        return furthest(stage, largest, tolerance.value)
    shares = {name: float((x > tolerance.value).sum()) / max(x.numel(), 1) for name, x in found.items()}
    note = f"share beyond {tolerance.value:.0e}, the largest {max(largest.values(), default=0.0):.1e}"
    return furthest(stage, shares, tolerance.share, note)


def _differences(ours: Tensor, recorded: Tensor) -> Tensor:
    if ours.shape != recorded.shape:
        return torch.tensor([math.inf])
    ours, recorded = ours.detach().double(), recorded.detach().double()
    scale = float(recorded.abs().max()) if recorded.numel() else 0.0
    return ((ours - recorded).abs() / (scale or 1.0)).nan_to_num(nan=math.inf, posinf=math.inf)


def furthest(stage: str, found: Mapping[str, float], tolerance: float, note: str = "") -> list[Check]:
    """One check of the largest of named differences; none if there are none."""
    if not found:
        return []
    name = max(found, key=found.__getitem__)
    count = f"{len(found)} compared, the worst {name}" if len(found) > 1 else ""
    return [Check(stage, found[name], tolerance, "; ".join(filter(None, [count, note])))]


def compare_maps(
    stage: str, ours: Tensor, recorded: Tensor | None, tolerance: Tolerance = EQUAL
) -> list[Check]:
    """One check of discrete tensors, or none if nothing was recorded."""
    if recorded is None:
        return []
    if ours.shape != recorded.shape:
        note = f"{tuple(ours.shape)}, recorded {tuple(recorded.shape)}"
        return [Check(stage, math.inf, tolerance.pixels, note)]
    differ = int((ours != recorded).sum())
    note = f"{differ} of {recorded.numel()} differ" if differ else ""
    return [Check(stage, differ / max(recorded.numel(), 1), tolerance.pixels, note)]


def equal(stage: str, wrong: int, total: int, note: str = "") -> Check:
    """A check that none of ``total`` is wrong."""
    return Check(stage, wrong / max(total, 1), 0.0, note)


def number(value: float) -> Tensor:
    """A recorded number as a tensor."""
    return torch.tensor(value, dtype=torch.float64)


def table(results: Sequence[tuple[str, Check]]) -> str:
    """The table of (case, check) as text."""
    rows = [("case", "stage", "difference", "tolerance", "", ""), *(_row(*result) for result in results)]
    return "\n".join(f"{a:<27} {b:<49} {c:>10} {d:>9} {e:<6} {f}".rstrip() for a, b, c, d, e, f in rows)


def _row(case: str, check: Check) -> tuple[str, str, str, str, str, str]:
    tolerance = f"{check.tolerance:.1e}" if check.tolerance else "equal"
    state = "ok" if check.ok else "NOT OK"
    return case, check.stage, f"{check.difference:.1e}", tolerance, state, check.note
