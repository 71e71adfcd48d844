"""Progress of an evaluation, from which an interrupted one resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odise_pl.errors import UserError
from odise_pl.files import write_text


class Progress:
    """The counts of the scored batches of one evaluation set, a file each, in a folder that all ranks share.

    Args:
        folder: created when something is written.
        digest: of everything that the results depend on; progress with another digest is ignored.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder / digest[:16]
        self._summary = self.folder / "done.json"

    def summary(self) -> dict[str, Any] | None:
        """The result of the set if it is finished."""
        return _read(self._summary) if self._summary.exists() else None

    def done(self) -> frozenset[int]:
        """The numbers of the scored batches."""
        return frozenset(int(path.stem) for path in self.folder.glob("[0-9]*.json"))

    def read(self, batch: int) -> dict[str, Any]:
        """The counts of a scored batch.

        Raises:
            UserError: the file is damaged.
        """
        return _read(self._path(batch))

    def add(self, batch: int, counts: Mapping[str, Any]) -> None:
        """Save the counts of a batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._path(batch), json.dumps(counts))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Replace the counts by the result of the set."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._summary, json.dumps(summary))
        for batch in self.done():
            self._path(batch).unlink()

    def _path(self, batch: int) -> Path:
        return self.folder / f"{batch:09d}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and run the command again") from error
    return content
