"""``odise app``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def app(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="a run's folder, a checkpoint, or an official release (default: runs/demo)", metavar="CKPT"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="of the page (default: the first free one from 7860)", min=1, max=65535),
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0 opens the page to the network")
    ] = "127.0.0.1",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Segment pictures in your own words, on a page in the browser.

    The page works offline and, by default, only on this machine.
    """
    from odise_pl.runs.console import quiet_libraries

    quiet_libraries()
    from odise_pl.app.server import serve

    serve(checkpoint, host, port, device)
