"""Progress of an evaluation, from which an interrupted one resumes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odise_pl.files import write_text
from odise_pl.metrics.suite import SegmentationMetrics

_log = logging.getLogger(__name__)
_SUMMARY = "done.json"


class Progress:
    """The progress of one evaluation set, in a folder that all ranks share.

    Every rank writes one file: the numbers of the batches it has scored, and the state of its metrics. A
    resumed evaluation distributes the files over its ranks, whose number may have changed. Each rank takes
    over the file that it will overwrite. So the batches of two files are either disjoint, or all batches of
    the older file are in the newer one.

    Args:
        folder: created when something is written.
        digest: of everything that the results depend on; files with another digest are ignored.
        every: seconds between saves.
    """

    def __init__(self, folder: Path, digest: str, every: float = 60.0) -> None:
        self.folder, self.digest, self.every = folder, digest, every
        self._batches: list[int] = []
        self._saved = time.monotonic()

    def summary(self) -> dict[str, Any] | None:
        """The result of the set if it is finished."""
        content = self._read(self.folder / _SUMMARY)
        return None if content is None else content["summary"]

    def done(self) -> frozenset[int]:
        """The batches that all ranks of earlier runs have scored."""
        return frozenset().union(*(content["batches"] for content in self._files().values()))

    def restore(self, metrics: SegmentationMetrics, rank: int, world_size: int) -> frozenset[int]:
        """Add the state that this rank takes over to its metrics.

        No rank may save before this has returned on all ranks.

        Returns:
            the batches that all ranks of earlier runs have scored.
        """
        done: set[int] = set()
        for number, content in self._files().items():
            batches = set(content["batches"])
            if batches <= done:
                continue
            done |= batches
            if number % world_size == rank:
                metrics.add(content["metrics"])
                self._batches += content["batches"]
        if done and rank == 0:
            _log.info("%s: %d batches are done, resuming", self.folder.name, len(done))
        return frozenset(done)

    def _files(self) -> dict[int, dict[str, Any]]:
        """The files of this evaluation by rank, those with more batches first."""
        paths = sorted(self.folder.glob("rank*.json"))
        found = {int(path.stem.removeprefix("rank")): self._read(path) for path in paths}
        own = {rank: content for rank, content in found.items() if content is not None}
        return dict(sorted(own.items(), key=lambda item: -len(item[1]["batches"])))

    def _read(self, path: Path) -> dict[str, Any] | None:
        """A file of this evaluation; None if it is missing, damaged, or of another evaluation."""
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("%s is damaged and ignored (%s)", path, error)
            return None
        return content if content["digest"] == self.digest else None

    def _write(self, name: str, **content: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / name, json.dumps({"digest": self.digest, **content}))

    def add(self, batch: int, metrics: SegmentationMetrics, rank: int) -> None:
        """Count a batch as scored, and save if it is time."""
        self._batches.append(batch)
        if time.monotonic() - self._saved >= self.every:
            self.save(metrics, rank)

    def save(self, metrics: SegmentationMetrics, rank: int) -> None:
        """Write the file of this rank."""
        self._write(f"rank{rank}.json", batches=self._batches, metrics=metrics.state())
        self._saved = time.monotonic()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Replace the files of the ranks by the result of the set."""
        self._write(_SUMMARY, summary=dict(summary))
        self.discard()

    def discard(self) -> None:
        """Remove the files of the ranks."""
        for path in self.folder.glob("rank*"):
            path.unlink()
