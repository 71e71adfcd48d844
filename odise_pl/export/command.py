"""``odise export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from odise_pl.prediction.command import Checkpoint, Settings, parse_settings


def export(
    checkpoint: Checkpoint,
    out: Annotated[
        Path,
        typer.Argument(help="NAME.onnx for the network, NAME.npz for embeddings of --words", metavar="OUT"),
    ],
    size: Annotated[
        str | None,
        typer.Option(
            help="height and width of the image in pixels, multiples of 64; default: one window",
            metavar="HxW",
        ),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            help="words that the network finds, as in predict; without, their embeddings are inputs"
        ),
    ] = None,
    head_only: Annotated[
        bool,
        typer.Option("--head-only", help="pixel decoder and mask decoder, from the pyramid of features"),
    ] = False,
    settings: Settings = None,
) -> None:
    """Export a network to ONNX, for inference without PyTorch."""
    import logging

    from odise_pl.runs.console import quiet_libraries

    quiet_libraries()
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it warns of operators that it does not fold
    from odise_pl.export.onnx import export as export_files

    files = export_files(checkpoint, out, size, words, head_only, parse_settings(settings))
    print(f"written: {', '.join(map(str, files))}")
