"""Comparisons with a record, and every tolerance they are held to.

Differences are relative to the largest recorded value. Run again with another convolution library, the
original moves its own features by 5e-6, masks by 1e-5, losses by 1.3e-6 and norms of gradients by 1.1e-3.
Single elements of gradients move by up to 7 % of the largest, because ReLUs and sampling points within
rounding of a threshold decide otherwise; so gradients are compared by norm and direction. ``STAGE``,
``LOSS`` and ``STEP`` leave a factor of five to twenty.

The mask decoder thresholds its masks, and a logit within rounding of zero may fall on either side. Such a
flip moves one query by up to 5 % and, through self-attention, the others a little. Where all masks of a
training step are recorded, those are thresholded instead of ours, and the strict tolerances hold
(:class:`~tests.parity.predictions.RecordedThresholds`). Elsewhere a share of the values may be further off.
The ``FLIPPED`` tolerances were measured on the small records with noise on the feature pyramid that moves
masks by 1e-5, as rounding does, to 1e-4. In 720 runs at most 22 % of a prediction moved by more than 1e-3;
in 240 of them 10 % of the instances' scores moved by more than 1e-2, and 1 % of a panoptic map changed. In
30 training steps flips moved losses by up to 1.5e-3, norms by 2.3e-2 and directions by 1.9e-3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# A name, our tensor, and the recorded one or None if the record lacks it.
Compared = tuple[str, Tensor, Tensor | None]


@dataclass(frozen=True)
class Tolerance:
    """How far results may be from a record.

    Attributes:
        value: largest difference of a value.
        share: share of the values that may differ by more.
        pixels: share of the elements of discrete maps that may differ.
    """

    value: float
    share: float = 0.0
    pixels: float = 1e-3


class StepTolerance(NamedTuple):
    """How far a training step may be from a record; ``direction`` is 1 - cosine of a gradient."""

    outputs: Tolerance
    loss: Tolerance
    norm: float
    direction: float


EQUAL = Tolerance(0.0, pixels=0.0)
STAGE = Tolerance(1e-4)
LOSS = Tolerance(1e-5)
STEP = StepTolerance(STAGE, LOSS, norm=5e-3, direction=5e-4)
LATER_STEPS = Tolerance(5e-4)  # of total losses; a learning rate that is 1 % off moves them by 1e-3

FLIPPED = Tolerance(1e-3, share=0.25)
FLIPPED_RESULTS = Tolerance(1e-2, share=0.1, pixels=0.05)
FLIPPED_STEP = StepTolerance(FLIPPED, Tolerance(2e-3), norm=2.5e-2, direction=2.5e-3)


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        stage: what was compared.
        difference: the largest one, or the share that differs; infinite for NaN and other shapes.
        tolerance: how large it may be.
        note: which of several is the worst, and the like.
    """

    stage: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Within tolerance."""
        return self.difference <= self.tolerance


def compare(stage: str, ours: Tensor, recorded: Tensor | None, tolerance: Tolerance = STAGE) -> list[Check]:
    """One check, or none if nothing was recorded."""
    return worst(stage, [("", ours, recorded)], tolerance)


def worst(stage: str, pairs: Iterable[Compared], tolerance: Tolerance = STAGE) -> list[Check]:
    """One check of all recorded tensors, each relative to its largest value; none if nothing was recorded."""
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
    """One check of the largest of some numbers by name; none if there are none."""
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
    """Lines of (case, check)."""
    rows = [("case", "stage", "difference", "tolerance", "", ""), *(_row(*result) for result in results)]
    return "\n".join(f"{a:<27} {b:<49} {c:>10} {d:>9} {e:<6} {f}".rstrip() for a, b, c, d, e, f in rows)


def _row(case: str, check: Check) -> tuple[str, str, str, str, str, str]:
    tolerance = f"{check.tolerance:.1e}" if check.tolerance else "equal"
    state = "ok" if check.ok else "NOT OK"
    return case, check.stage, f"{check.difference:.1e}", tolerance, state, check.note
