"""Make and grade the frozen weights: ``python -m scripts.pretrain_toyworld COMMAND``.

Each network is trained from scratch on captioned pictures of the whole world with its novel categories, as
CLIP and Stable Diffusion are on the web, in hours on a laptop. The moving average of the weights is written
in half precision. If interrupted, run the command again to resume from --work; delete that folder to restart.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from odise_pl.errors import report_user_errors
from scripts.figures import write_figures
from scripts.pretrain_toyworld import autoencoder, clip, diffusion, representations
from scripts.pretrain_toyworld.grade import yield_grades
from scripts.pretrain_toyworld.networks import DIFFUSION_FOLDER, MEMBERS, WEIGHTS, backbone
from scripts.pretrain_toyworld.probe import probe
from scripts.pretrain_toyworld.representations import PASSES, recipe_of
from scripts.pretrain_toyworld.training import Recipe

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
Out = Annotated[Path, typer.Option(help="folder of the weights; existing ones are overwritten")]
Work = Annotated[Path, typer.Option(help="folder of checkpoints")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, ...")]
WORK = Path("runs/pretrain")


@app.command("clip")
def train_clip(out: Out, work: Work = WORK, device: Device = "cpu") -> None:
    """Train CLIP."""
    _train(clip.pretrain, clip.RECIPE, out, work, device)


@app.command("autoencoder")
def train_autoencoder(out: Out, work: Work = WORK, device: Device = "cpu") -> None:
    """Train the autoencoder of the diffusion model."""
    _train(autoencoder.pretrain, autoencoder.RECIPE, out, work, device)


@app.command("unet")
def train_unet(out: Out, work: Work = WORK, device: Device = "cpu") -> None:
    """Train the UNet of the diffusion model; CLIP and the autoencoder have to be in --out."""
    _train(diffusion.pretrain, diffusion.RECIPE, out, work, device)


class Kind(StrEnum):
    """Networks beside those of the demo: members of the families in the paper's table, and FC-CLIP's."""

    supervised_conv = "supervised_conv"
    supervised_vit = "supervised_vit"
    mae = "mae"
    dino = "dino"
    class_conditional_diffusion = "class_conditional_diffusion"
    clip_conv = "clip_conv"


@app.command()
def representation(
    kind: Kind,
    out: Out,
    work: Work = WORK,
    passes: Annotated[
        int, typer.Option(min=1, help="images that the network sees, at least a quarter of them at full size")
    ] = PASSES,
    device: Device = "cpu",
) -> None:
    """Train another network on the same pictures.

    For diffusion the autoencoder has to be in --out; for the convolutional CLIP the CLIP with its texts.
    """
    (out / MEMBERS).mkdir(parents=True, exist_ok=True)
    if kind is Kind.class_conditional_diffusion:
        recipe = recipe_of(passes, pictures=diffusion.RECIPE.pictures, decay=diffusion.RECIPE.decay)
        _train(diffusion.pretrain_on_classes, recipe, out, work, device)
    elif kind is Kind.clip_conv:
        recipe = recipe_of(passes, batch=96)
        _train(clip.pretrain_convolutional, recipe, out, work, device)
    else:
        training = representations.TRAININGS[kind]
        recipe = recipe_of(passes, training.passes, lr=training.lr)
        _train(partial(representations.pretrain, kind.value), recipe, out, work, device)


def _train(pretrain: Callable[..., None], recipe: Recipe, out: Path, work: Path, device: str) -> None:
    for folder in (out / DIFFUSION_FOLDER, work):
        folder.mkdir(parents=True, exist_ok=True)
    pretrain(recipe, out, work, device)


class Network(StrEnum):
    """The frozen networks."""

    clip = "clip"
    clip_conv = "clip_conv"
    autoencoder = "autoencoder"
    unet = "unet"


@app.command()
def grade(
    networks: Annotated[list[Network] | None, typer.Argument(help="networks to grade (default: all)")] = None,
    weights: Annotated[
        Path, typer.Option(help="folder of the weights", show_default="those in the package")
    ] = WEIGHTS,
    count: Annotated[int, typer.Option(min=1, help="held-out crops and pictures")] = 500,
    sheet: Annotated[Path | None, typer.Option(help="picture file for samples of the UNet")] = None,
) -> None:
    """Measure the quality of frozen networks on held-out pictures."""
    for line in yield_grades(networks or list(Network), weights, count, sheet=sheet):
        print(line, flush=True)


@app.command("probe")
def probe_backbones(
    backbones: Annotated[list[str], typer.Argument(help="names in conf/backbone")],
    weights: Annotated[
        Path, typer.Option(help="folder of the weights", show_default="those in the package")
    ] = WEIGHTS,
    count: Annotated[int, typer.Option(min=1, help="pictures to fit, and as many to grade")] = 200,
    file: Annotated[Path | None, typer.Option("--json", help="file for the shares")] = None,
) -> None:
    """Name the patches of held-out pictures by a linear map of frozen features."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in backbones:
        sources: dict[str, str | Path] = {"trained": weights, "random": "random"}
        for made, source in sources.items():
            things, stuff = (100 * share for share in probe(backbone(name, source), count))
            found.setdefault(name, {})[made] = {"things": things, "stuff": stuff}
            print(f"{name}, {made}: {things:.1f} % of things and {stuff:.1f} % of stuff", flush=True)
    if file is not None:
        what = "Percentages of patches of held-out pictures that a linear map of frozen features names."
        write_figures(file, what, {"backbones": found})


if __name__ == "__main__":
    with report_user_errors():
        app(prog_name="python -m scripts.pretrain_toyworld")
