"""What was compared with what, and how far apart they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STAGE = 1e-4  # where nothing is thresholded, and for a stage that was fed what was recorded
END_TO_END = 1e-3  # from the image, behind the thresholds of the mask decoder
LOSS = 1e-5
GRADIENT = 5e-3  # of a gradient's norm; the original reproduces its own to 1.1e-3
DIRECTION = 5e-4  # 1 - cosine of a gradient: an angle of 1.8 degrees, or 3 % of the norm beside it
UNDECIDED = 1e-3  # largest share of elements that may fall on the other side of a threshold


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        stage: what was compared.
        difference: the largest, relative to the record's maximum; of discrete results the share that
            differs.
        tolerance: how large it may be.
        note: what else there is to say.
        wrong: discrete results that differ though no threshold was near.
    """

    stage: str
    difference: float
    tolerance: float
    note: str = ""
    wrong: int = 0

    @property
    def ok(self) -> bool:
        """Within tolerance; NaN never is."""
        return self.difference <= self.tolerance and not self.wrong


def relative(ours: Tensor, recorded: Tensor) -> float:
    """Largest difference over the record's largest value; infinite for other shapes, NaN for NaN."""
    if ours.shape != recorded.shape:
        return float("inf")
    if not recorded.numel():
        return 0.0
    ours, recorded = ours.detach().double(), recorded.double()
    scale = recorded.abs().max()
    return float((ours - recorded).abs().max() / (scale if scale > 0 else 1.0))


def compare(
    stage: str, ours: Tensor, recorded: Tensor | None, tolerance: float = STAGE, note: str = ""
) -> list[Check]:
    """One check, or none where nothing was recorded."""
    if recorded is None:
        return []
    if ours.shape != recorded.shape:
        note = f"{tuple(ours.shape)}, recorded {tuple(recorded.shape)}"
    return [Check(stage, relative(ours, recorded), tolerance, note)]


def worst(
    stage: str, pairs: Iterable[tuple[str, Tensor, Tensor]], tolerance: float, note: str = ""
) -> list[Check]:
    """One check of many tensors, (name, ours, recorded), each relative to its own maximum."""
    found = [(name, relative(ours, recorded)) for name, ours, recorded in pairs]
    return furthest(stage, found, tolerance, note)


def furthest(stage: str, found: Sequence[tuple[str, float]], tolerance: float, note: str = "") -> list[Check]:
    """One check of many differences, (name, difference)."""
    if not found:
        return []
    # NaN compares with nothing: it has to win by hand
    name, difference = max(found, key=lambda item: float("inf") if item[1] != item[1] else item[1])
    count = f"{len(found)} compared, the worst {name}" if len(found) > 1 else ""
    return [Check(stage, difference, tolerance, "; ".join(filter(None, [count, note])))]


def equal(stage: str, differing: int, total: int, note: str = "") -> Check:
    """Discrete results that have to be equal."""
    return Check(stage, differing / max(total, 1), 0.0, note, wrong=differing)


def equal_tensors(stage: str, ours: Tensor, recorded: Tensor | None) -> list[Check]:
    """Integer tensors that have to be equal; none where nothing was recorded."""
    if recorded is None:
        return []
    if ours.shape != recorded.shape:
        return [equal(stage, 1, 1, f"{tuple(ours.shape)}, recorded {tuple(recorded.shape)}")]
    return [equal(stage, int((ours != recorded).sum()), recorded.numel())]


def near(values: Tensor, tolerance: float) -> Tensor:
    """Where logits are so close to zero that a difference within the tolerance may turn the decision."""
    return values.abs() < tolerance * values.abs().max()


def agree_where_decided(
    stage: str, ours: Tensor, recorded: Tensor, undecided: Tensor, what: str = "pixels"
) -> Check:
    """Discrete maps that are equal but for few elements whose decision is close.

    Args:
        stage: name of the check.
        ours, recorded: of one shape.
        undecided: bool, where a difference within the tolerance may turn the decision.
        what: the elements, in words.
    """
    if ours.shape != recorded.shape:
        return equal(stage, 1, 1, f"{tuple(ours.shape)}, recorded {tuple(recorded.shape)}")
    differs = ours != recorded
    number, total = int(differs.sum()), max(differs.numel(), 1)
    note = f"{number} of {total} {what} undecided" if number else ""
    return Check(stage, number / total, UNDECIDED, note, wrong=int((differs & ~undecided).sum()))


def table(results: Sequence[tuple[str, Check]]) -> str:
    """Lines of (case, check) as text."""
    head = ("case", "stage", "difference", "tolerance", "", "")
    lines = [head, *(_line(case, check) for case, check in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]).rstrip()
        for line in lines
    )


def _line(case: str, check: Check) -> tuple[str, ...]:
    note = f"{check.wrong} wrong; {check.note}".rstrip("; ") if check.wrong else check.note
    tolerance = f"{check.tolerance:.0e}" if check.tolerance else "equal"
    state = "ok" if check.ok else "NOT OK"
    return (case, check.stage, f"{check.difference:.1e}", tolerance, state, note)


def stacked(values: Iterable[float]) -> Tensor:
    """Recorded numbers as a tensor."""
    return torch.tensor(list(values), dtype=torch.float64)
