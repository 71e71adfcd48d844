"""Find the best combination of settings on the small world: ``python -m scripts.docs.best_method``.

In each round, one more setting is added to the best combination so far; what only changes inference is
evaluated, the rest is trained as long as a row of the table of methods. PQ of novel classes decides, on
pictures of another seed than those that the tables report, and so does the seed of the trainings. Stop it at
any time and run it again: finished runs are skipped, interrupted ones resume.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from odise_pl.errors import report_user_errors
from odise_pl.runs.finished import find_runs
from scripts.docs.pictures import FIGURES
from scripts.docs.small_world import BUDGET, HEAD, RUNS, execute
from scripts.figures import write_figures

SEED, PICTURES_SEED = 10, 1
PICTURES = Path("data/shards_choice")
_START = "ODISE"
_DATA = [f"data.val.{name}={PICTURES / name}" for name in ("toy_val", "toy_open")]
_CONVOLUTION = ("backbone.trained=true", "++optimizer.lr_scale={backbone.features: 0.1}")
_SECOND = (
    "backbone=two",
    "backbone@backbone.first=toy",
    "backbone.window=128",
    "backbone.input_size=128",
    "backbone.channels=256",
)


@dataclass(frozen=True)
class Round:
    """Candidates, by name; ``trains``: they change training, not only inference."""

    trains: bool
    candidates: dict[str, tuple[str, ...]]


ROUNDS = {}
