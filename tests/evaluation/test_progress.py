from __future__ import annotations

from pathlib import Path

import pytest

from odise_pl.errors import UserError
from odise_pl.evaluation.progress import Progress


def test_progress_of_another_evaluation_is_ignored(tmp_path: Path) -> None:
    one, other = Progress(tmp_path, "one"), Progress(tmp_path, "other")
    assert (one.done(), one.summary()) == (frozenset(), None)
    for batch in (3, 1):
        one.add(batch, {"skipped": batch})
    assert (one.done(), other.done()) == ({1, 3}, frozenset())
    assert one.read(3) == {"skipped": 3}
    one.finish({"data": "x"})
    assert (one.done(), one.summary(), other.summary()) == (frozenset(), {"data": "x"}, None)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    progress = Progress(tmp_path, "digest")
    progress.add(7, {"skipped": 0})
    (path,) = progress.folder.iterdir()
    path.write_bytes(b"{")
    with pytest.raises(UserError, match=str(path)):
        progress.read(7)
