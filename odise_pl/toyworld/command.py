"""``odise demo`` and ``odise toyworld``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from odise_pl.toyworld import WEIGHTS

app = typer.Typer(help="The small world: paint its data sets, train and grade its frozen models.")


class Supervision(StrEnum):
    """What training learns class names from."""

    label = "label"
    caption = "caption"


class Device(StrEnum):
    """Device of training."""

    cpu = "cpu"
    gpu = "gpu"


class Model(StrEnum):
    """The frozen models."""

    clip = "clip"
    vae = "vae"
    unet = "unet"


def demo(
    supervision: Annotated[
        Supervision, typer.Argument(help="what training learns class names from")
    ] = Supervision.label,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run (default: runs/demo or runs/demo_caption)")
    ] = None,
    shards: Annotated[Path, typer.Option(help="folder of the painted data sets")] = Path("data/shards"),
    device: Annotated[Device, typer.Option(help="device of training")] = Device.cpu,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="setting of training, e.g. trainer.max_steps=100; repeatable",
        ),
    ] = None,
) -> None:
    """Paint a small world, train on it, evaluate and draw pictures, in minutes on a laptop, offline.

    If interrupted, run it again to resume.
    """
    import logging

    from odise_pl.toyworld.demo import run_demo

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    name = "demo" if supervision is Supervision.label else "demo_caption"
    choices = [*([f"trainer={device.value}"] if device is Device.gpu else []), *(settings or ())]
    run_demo(supervision.value, out or Path("runs", name), shards, choices)


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


@app.command()
def pretrain(
    model: Annotated[Model, typer.Argument(help="unet needs the other two")],
    out: Annotated[Path, typer.Option(help="folder of the weights; existing ones are overwritten")],
    work: Annotated[Path, typer.Option(help="folder of checkpoints and logs")] = Path("runs/pretrain"),
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="optimizer steps (default: as for the packaged weights)"),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed")] = "32-true",
) -> None:
    """Train a frozen model from scratch, in hours on a laptop.

    If interrupted, run it again to resume from --work; delete that folder to restart.
    """
    import logging
    from dataclasses import replace

    from odise_pl.toyworld.pretraining.run import RECIPES
    from odise_pl.toyworld.pretraining.run import pretrain as run

    logging.getLogger("lightning").setLevel(logging.WARNING)
    recipe = RECIPES[model]
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    run(model, recipe, out, work, accelerator, precision)


@app.command()
def grade(
    models: Annotated[list[Model] | None, typer.Argument(help="models to grade (default: all)")] = None,
    weights: Annotated[
        Path, typer.Option(help="folder of the models", show_default="those in the package")
    ] = WEIGHTS,
    count: Annotated[int, typer.Option(min=1, help="held-out crops and pictures")] = 500,
    sheet: Annotated[Path | None, typer.Option(help="PNG for samples of the UNet")] = None,
) -> None:
    """Measure the quality of frozen models on held-out pictures."""
    from odise_pl.toyworld.grade import grade

    for line in grade(models or list(Model), weights, count, sheet=sheet):
        print(line, flush=True)
