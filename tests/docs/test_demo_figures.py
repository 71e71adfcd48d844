"""The demo's figures in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from odise_pl.runs.record import AblationSettings, mark_finished
from scripts.docs.demo import scores_of
from scripts.docs.tables import demo


def test_scores_of_a_run_fill_the_table(tmp_path: Path) -> None:
    settings = AblationSettings("label", "0", True, "implicit", "both")
    val = {"pq": 0.5, "map": 0.25, "miou": 0.75}
    both = {
        f"{name}_{kind}": value / 2 for name, value in val.items() for kind in ("base", "novel", "harmonic")
    }
    mark_finished(tmp_path, settings, {"toy_val": val, "toy_open": {**val, **both}})
    found = scores_of(tmp_path)
    assert found["toy_val"] == pytest.approx({"pq": 50, "map": 25, "miou": 75})
    assert found["toy_open"]["novel"] == pytest.approx({"pq": 25, "map": 12.5, "miou": 37.5})
    table = demo({"demo": {"name": "here", "minutes": 8.1, **found}})
    assert table.rows == (("here", "8.1", "50.0, 25.0, 75.0", "25.0, 12.5, 37.5", "25.0, 12.5, 37.5"),)
