"""``odise demo`` and ``odise toyworld``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The small world: paint its data sets.")


class Supervision(StrEnum):
    """What training learns class names from."""

    label = "label"
    caption = "caption"


def demo(
    supervision: Annotated[
        Supervision, typer.Argument(help="what training learns class names from")
    ] = Supervision.label,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run (default: runs/demo or runs/demo_caption)")
    ] = None,
    shards: Annotated[Path, typer.Option(help="folder of the painted data sets")] = Path("data/shards"),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="setting of training, e.g. trainer=gpu or trainer.max_steps=100; repeatable",
        ),
    ] = None,
) -> None:
    """Paint a small world, train on it, evaluate and draw pictures, in minutes on a laptop, offline.

    If interrupted, run it again to resume.
    """
    import logging

    from odise_pl.runs.console import quiet_lightning

    quiet_lightning()
    from odise_pl.toyworld.demo import run_demo

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    name = "demo" if supervision is Supervision.label else "demo_caption"
    run_demo(supervision.value, out or Path("runs", name), shards, settings or ())


@app.command()
def make(
    out: Annotated[Path, typer.Option(help="folder of the data sets")] = Path("data/shards"),
    train: Annotated[int, typer.Option(min=1, help="pictures of toy_train")] = 2000,
    val: Annotated[int, typer.Option(min=1, help="pictures of toy_val")] = 200,
    open_: Annotated[int, typer.Option("--open", min=1, help="pictures of toy_open")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=1, help="number of processes")] = 2,
) -> None:
    """Paint the data sets toy_train, toy_val and toy_open, reproducibly for each seed."""
    from odise_pl.toyworld.make import make, toy_sets

    for toy_set in toy_sets(train, val, open_):
        print(make(toy_set, out, seed, workers))
