"""The thresholds of the mask decoder, where two correct programs may decide differently.

The decoder hides from a query what its mask does not show, and pools features where the mask is on. A logit
that lies within rounding of zero may fall on either side, and what follows then differs by far more than
rounding. Such decisions are taken from the record where it holds the masks; where it does not, they are found
by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.heads.mask_decoder import DecoderOutput, MaskDecoder
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from tests.parity.checks import STAGE, UNDECIDED, Check, near

TRIALS = 48


@dataclass(frozen=True, order=True)
class Decision:
    """A cell of a map that may fall on either side.

    Attributes:
        margin: distance of its logit from zero, relative to the map's largest.
        site: ``hidden`` or ``pooled``.
        output: number of the prediction whose mask it is.
        index: (image, query, row, column).
    """

    margin: float
    site: str
    output: int
    index: tuple[int, ...]

    @property
    def place(self) -> tuple[str, int, tuple[int, ...]]:
        """What identifies it in another run."""
        return (self.site, self.output, self.index)


class DecidingMaskDecoder(MaskDecoder):
    """A mask decoder whose close decisions can be given from outside.

    Attributes:
        recorded: recorded mask logits by number of the prediction; close decisions are taken from them.
        flipped: places of decisions that are turned round.
        taken, cells: decisions of the last pass that were not its own, and all of them.
        open: close decisions of the last pass for which nothing is recorded.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recorded: dict[int, Tensor] = {}
        self.flipped: frozenset[tuple[str, int, tuple[int, ...]]] = frozenset()
        self._start()

    def reset(self) -> None:
        """Decide alone again."""
        self.recorded, self.flipped = {}, frozenset()

    def _start(self) -> None:
        self.taken = self.cells = 0
        self.open: list[Decision] = []
        self._calls = {"hidden": 0, "pooled": 0}

    def forward(self, features: PixelFeatures) -> list[DecoderOutput]:
        """As the base class."""
        self._start()
        return super().forward(features)

    def hidden_cells(self, mask_logits: Tensor, size: torch.Size) -> Tensor:
        """As the base class, but for close decisions."""

        def resized(x: Tensor) -> Tensor:
            return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)

        decide = super().hidden_cells
        return self._settle("hidden", mask_logits, lambda x: decide(x, size), resized)

    def pooled_cells(self, mask_logits: Tensor) -> Tensor:
        """As the base class, but for close decisions."""
        return self._settle("pooled", mask_logits, super().pooled_cells, lambda x: x)

    def _settle(
        self,
        site: str,
        mask_logits: Tensor,
        decide: Callable[[Tensor], Tensor],
        values: Callable[[Tensor], Tensor],
    ) -> Tensor:
        output = self._calls[site]
        self._calls[site] += 1
        own, logits = decide(mask_logits), values(mask_logits)
        close = near(logits, STAGE)
        self.cells += own.numel()
        if output in self.recorded:
            change = close & (own != decide(self.recorded[output]))
        else:
            change = self._turn(site, output, logits, close)
        self.taken += int(change.sum())
        return own ^ change

    def _turn(self, site: str, output: int, logits: Tensor, close: Tensor) -> Tensor:
        change, largest = torch.zeros_like(close), logits.abs().max()
        for place in close.nonzero().tolist():
            index = tuple(place)
            self.open.append(Decision(float(logits[index].abs() / largest), site, output, index))
            change[index] = (site, output, index) in self.flipped
        return change


def settle(
    decoder: DecidingMaskDecoder,
    features: PixelFeatures,
    distance: Callable[[Sequence[DecoderOutput]], Tensor],
) -> list[DecoderOutput]:
    """Outputs with the close decisions that bring them nearest to a record; the decoder keeps them.

    Args:
        decoder: what runs.
        features: its input.
        distance: how far outputs are from the record, [B, Q], over what is tolerated: 1 is as far as may be.
    """
    outputs = decoder(features)
    best, left = distance(outputs), TRIALS
    while left and not bool((best <= 1).all()):
        candidates = _candidates(decoder, best)[:left]
        before, found = decoder.flipped, False
        for decision in candidates:
            left -= 1
            decoder.flipped = before | {decision.place}
            trial = decoder(features)
            if found := _nearer(now := distance(trial), best):
                outputs, best = trial, now
                break
        if not found:
            decoder.flipped = before
            return decoder(features)
    return outputs


def _candidates(decoder: DecidingMaskDecoder, distance: Tensor) -> list[Decision]:
    """Close decisions of the last pass about rows that are off, the closest first."""
    off = {tuple(row) for row in (~(distance <= 1)).nonzero().tolist()}
    return [d for d in sorted(decoder.open) if d.index[:2] in off and d.place not in decoder.flipped]


def _nearer(now: Tensor, best: Tensor) -> bool:
    count, old = int((~(now <= 1)).sum()), int((~(best <= 1)).sum())
    return count < old or (count == old and bool(now.max() < 0.5 * best.max()))


def threshold_check(decoder: DecidingMaskDecoder) -> Check:
    """How many decisions of the last pass were not its own."""
    note = f"{decoder.taken} undecided of {decoder.cells}" if decoder.taken else ""
    return Check("mask decoder: thresholds", decoder.taken / max(decoder.cells, 1), UNDECIDED, note)
