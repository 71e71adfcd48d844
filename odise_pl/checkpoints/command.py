"""``odise checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Convert checkpoints to the official format.", no_args_is_help=True)


@app.command("export")
def export_checkpoint(
    source: Annotated[Path, typer.Argument(help="the checkpoint to read")],
    target: Annotated[Path, typer.Argument(help="the file to write")],
) -> None:
    """Convert a checkpoint of this project to the official format."""
    from odise_pl.checkpoints.weights import export_official

    export_official(source, target)
    print(f"written: {target}")
