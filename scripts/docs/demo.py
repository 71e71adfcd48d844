"""Time ``make demo`` in a clean clone with an empty home, and write its scores for the documentation.

``python -m scripts.docs.demo FOLDER``; FOLDER then has the run, for ``make pictures``. The time includes the
download of the packages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odise_pl.runs.finished import read_run
from scripts.docs.numbers import ROOT
from scripts.docs.tables import demo_runs
from scripts.figures import write_figures

FIGURES = ROOT / "docs" / "figures" / "demo.json"
_CLASSES = ("base", "novel")


def scores_of(run: Path) -> dict[str, Any]:
    """The scores in percent by evaluation set; those of base and novel classes below it."""
    return {name: _nested(scores) for name, scores in read_run(run).scores.items()}


def _nested(scores: Mapping[str, float]) -> dict[str, Any]:
    percent = {key: 100 * value for key, value in scores.items()}
    found: dict[str, Any] = {key: value for key, value in percent.items() if "_" not in key}
    for classes in _CLASSES:
        own = {k.removesuffix(f"_{classes}"): v for k, v in percent.items() if k.endswith(f"_{classes}")}
        if own:
            found[classes] = own
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the clone and its home; must not exist")
    parser.add_argument("--name", default="measured", help="of the machine, in the table")
    options = parser.parse_args()
    folder = options.folder.resolve()
    clone, home = folder / "clone", folder / "home"
    home.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    load, start = os.getloadavg()[0], time.monotonic()
    subprocess.run(["make", "demo"], cwd=clone, env={**os.environ, "HOME": str(home)}, check=True)
    known = demo_runs(json.loads(FIGURES.read_text(encoding="utf-8")))
    values = {
        "machines": [run for run in known if run["name"] != options.name],
        "name": options.name,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "load": {"before": load, "after": os.getloadavg()[0]},
        **scores_of(clone / "runs" / "demo"),
    }
    what = (
        "make demo from a clean clone with an empty home, seed 0: minutes, load of the machine, and percent."
    )
    write_figures(FIGURES, what, values)
    print(f"written: {FIGURES}; python -m scripts.docs.numbers fills the pages")


if __name__ == "__main__":
    main()
