"""``odise checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Convert checkpoints from and to the official format.", no_args_is_help=True)
Source = Annotated[Path, typer.Argument(help="the checkpoint to read")]
Target = Annotated[Path, typer.Argument(help="the file to write")]


@app.command("export")
def export_checkpoint(source: Source, target: Target) -> None:
    """Convert a checkpoint of this project to the official format."""
    from odise_pl.checkpoints.io import export_official

    export_official(source, target)
    print(f"written: {target}")


@app.command("import")
def import_checkpoint(source: Source, target: Target) -> None:
    """Convert an official checkpoint to this project's format."""
    from odise_pl.checkpoints.io import import_official

    import_official(source, target)
    print(f"written: {target}")
