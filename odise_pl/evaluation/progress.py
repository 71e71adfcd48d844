"""What an interrupted evaluation has done, so that the same command goes on where it was."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from odise_pl.files import write_text
from odise_pl.metrics.suite import SegmentationMetrics

_log = logging.getLogger(__name__)
_SUMMARY = "done.json"
# what reading a truncated or foreign file raises
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError)


class Progress:
    """The progress of one evaluation set, in a folder that all ranks see.

    Every rank keeps one file: the batches it has scored, by their number in the set, and the states of its
    metrics. A run that continues deals the files among its ranks, whatever their number was before. A rank
    always takes over the file that it is going to overwrite, so the batches of two files are disjoint, or
    those of one are all in the other and it is out of date.

    Args:
        folder: made when there is something to write.
        digest: of all that the results depend on; files with another one are not looked at.
        every: seconds between savings.
    """

    def __init__(self, folder: Path, digest: str, every: float = 60.0) -> None:
        self.folder, self.digest, self.every = folder, digest, every
        self._batches: list[int] = []
        self._saved = time.monotonic()

    def summary(self) -> dict[str, Any] | None:
        """The result of the set if it is finished."""
        try:
            content = json.loads((self.folder / _SUMMARY).read_text(encoding="utf-8"))
            return content["summary"] if content["digest"] == self.digest else None
        except FileNotFoundError:
            return None
        except _DAMAGED as error:
            self._ignore(_SUMMARY, error)
            return None

    def _ignore(self, name: str, error: Exception) -> None:
        _log.warning("%s is damaged and does not count (%s)", self.folder / name, error)

    def done(self) -> frozenset[int]:
        """The batches that all ranks of earlier runs together have done."""
        return frozenset().union(*(content["batches"] for _, content in self._files()))

    def restore(self, metrics: SegmentationMetrics, rank: int, world_size: int) -> frozenset[int]:
        """Add what this rank takes over to the metrics; the batches that all ranks together have done.

        All ranks must have come back from here before one saves.
        """
        done: set[int] = set()
        for number, content in self._files():
            batches = set(content["batches"])
            if batches <= done:
                continue
            done |= batches
            if number % world_size == rank:
                metrics.add_states(content["metrics"])
                self._batches += content["batches"]
        if done and rank == 0:
            _log.info("%s: %d batches are done, going on with the others", self.folder.name, len(done))
        return frozenset(done)

    def _files(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Rank and content of the files of this very evaluation, those with more batches first."""
        found = []
        for path in sorted(self.folder.glob("rank*.pt")):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                if content["digest"] == self.digest:
                    found.append((int(path.stem.removeprefix("rank")), content))
            except _DAMAGED as error:
                self._ignore(path.name, error)
        return sorted(found, key=lambda item: -len(item[1]["batches"]))

    def note(self, batch: int, metrics: SegmentationMetrics, rank: int) -> None:
        """A batch is scored; from time to time everything is saved."""
        self._batches.append(batch)
        if time.monotonic() - self._saved >= self.every:
            self.save(metrics, rank)

    def save(self, metrics: SegmentationMetrics, rank: int) -> None:
        """Write what this rank has done, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank{rank}.pt"
        content = {"digest": self.digest, "batches": self._batches, "metrics": metrics.states()}
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        partial.replace(path)
        self._saved = time.monotonic()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The set is finished: its result takes the place of the files of the ranks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / _SUMMARY, json.dumps({"digest": self.digest, "summary": dict(summary)}))
        self.discard()

    def discard(self) -> None:
        """Remove the files of the ranks."""
        for path in self.folder.glob("rank*"):
            path.unlink()


def forget(folder: Path) -> None:
    """Remove the progress of all sets of a finished evaluation."""
    shutil.rmtree(folder, ignore_errors=True)
