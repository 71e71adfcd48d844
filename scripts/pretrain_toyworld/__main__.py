"""``python -m scripts.pretrain_toyworld clip|autoencoder|unet|grade``: make and grade the frozen weights.

Training takes hours on a laptop. If interrupted, run it again to resume from ``--work``; delete that folder
to restart.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from odise_pl.errors import report_user_errors
from scripts.pretrain_toyworld.grade import grade as yield_grades
from scripts.pretrain_toyworld.models import WEIGHTS
from scripts.pretrain_toyworld.run import RECIPES, pretrain

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
Out = Annotated[Path, typer.Option(help="folder of the weights; existing ones are overwritten")]
Work = Annotated[Path, typer.Option(help="folder of checkpoints and logs")]
Steps = Annotated[int | None, typer.Option(min=1, help="optimizer steps (default: the recipe's)")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or gpu")]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed")]
WORK = Path("runs/pretrain")


class Model(StrEnum):
    """The frozen models."""

    clip = "clip"
    vae = "vae"
    unet = "unet"


@app.command()
def clip(
    out: Out,
    work: Work = WORK,
    steps: Steps = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "32-true",
) -> None:
    """Train CLIP from scratch."""
    _train("clip", out, work, steps, accelerator, precision)


@app.command()
def autoencoder(
    out: Out,
    work: Work = WORK,
    steps: Steps = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "32-true",
) -> None:
    """Train the autoencoder of the diffusion model from scratch."""
    _train("vae", out, work, steps, accelerator, precision)


@app.command()
def unet(
    out: Out,
    work: Work = WORK,
    steps: Steps = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "32-true",
) -> None:
    """Train the UNet from scratch; CLIP and the autoencoder have to be in --out."""
    _train("unet", out, work, steps, accelerator, precision)


def _train(model: str, out: Path, work: Path, steps: int | None, accelerator: str, precision: str) -> None:
    logging.getLogger("lightning").setLevel(logging.WARNING)
    recipe = RECIPES[model] if steps is None else replace(RECIPES[model], steps=steps)
    pretrain(model, recipe, out, work, accelerator, precision)


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
    for line in yield_grades(models or list(Model), weights, count, sheet=sheet):
        print(line, flush=True)


if __name__ == "__main__":
    with report_user_errors():
        app(prog_name="python -m scripts.pretrain_toyworld")
