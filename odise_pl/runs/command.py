"""``odise report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(help="folder with finished runs at any depth, e.g. runs/NAME", metavar="DIR")
    ],
    out: Annotated[Path | None, typer.Option(help="folder for the tables (default: DIR/report)")] = None,
) -> None:
    """Compare finished runs with the paper's ablations: tables in Markdown and CSV, and a plot."""
    from odise_pl.runs.record import find_runs
    from odise_pl.runs.report import write

    runs = find_runs(folder)
    paths = write(runs, out or folder / "report")
    print(paths[0].read_text(encoding="utf-8"))
    print(f"runs: {len(runs)}; written: " + ", ".join(map(str, paths)))
