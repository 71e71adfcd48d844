"""``odise report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="folders with finished runs at any depth, e.g. runs/NAME", metavar="DIR..."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="folder for the tables (default: report in the first DIR)")
    ] = None,
) -> None:
    """Compare finished runs with each other and the paper's: tables in Markdown, CSV and JSON, and plots."""
    from odise_pl.runs.finished import find_runs
    from odise_pl.runs.report import write

    runs = find_runs(*folders)
    paths = write(runs, out or folders[0] / "report")
    print(paths[0].read_text(encoding="utf-8"))
    print(f"runs: {len(runs)}; written to {paths[0].parent}")
