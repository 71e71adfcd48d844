"""``odise hub`` and ``odise weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Publish networks on the Hugging Face Hub.", no_args_is_help=True)
weights_app = typer.Typer(help="Get official and frozen weights.", no_args_is_help=True)
_Folder = Annotated[Path, typer.Option(help="folder of the weights (paths.weights)", file_okay=False)]


@app.callback()
def _hub() -> None:
    """Makes ``push`` a command of its own, although it is the only one."""


@app.command()
def push(
    source: Annotated[
        Path,
        typer.Argument(help="folder of a run, or a folder from --folder", metavar="RUN", exists=True),
    ],
    name: Annotated[str, typer.Argument(help="the repository: OWNER/NAME", metavar="ID")],
    folder: Annotated[
        Path | None,
        typer.Option(
            help="write the files here to look at or to edit them, and upload nothing", file_okay=False
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="make a private repository")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="of the trained weights, e.g. apache-2.0, cc-by-nc-sa-4.0")
    ] = None,
) -> None:
    """Publish the newest network of a run, for Segmenter.from_pretrained("OWNER/NAME").

    Uploads config.json, model.safetensors (trained weights only) and README.md (the model card, with scores).
    Needs a token that may write: hf auth login.
    """
    from odise_pl.hub import networks

    if folder is None:
        print(f"published: {networks.push(source, name, private, licence)}")
        return
    networks.check_id(name)
    networks.save_pretrained(source, folder, name, licence)
    print(f"written: {folder}; upload it with: odise hub push {folder} {name}")


@weights_app.command("fetch")
def fetch_weights(
    names: Annotated[list[str], typer.Argument(help="see odise weights list", metavar="NAME...")],
    folder: _Folder = Path("weights"),
) -> None:
    """Download weights, and say their licence. An interrupted download resumes."""
    from odise_pl.hub.weights import fetch

    for name in names:
        fetch(name, folder)


@weights_app.command("list")
def list_weights(folder: _Folder = Path("weights")) -> None:
    """List weights: what for, size, licence, and whether they are there."""
    from odise_pl.hub.weights import describe_weights

    print(describe_weights(folder))
