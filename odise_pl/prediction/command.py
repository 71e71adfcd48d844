"""``odise predict`` and ``odise kmeans``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="a run's folder, a checkpoint, an official release, or OWNER/NAME on the Hub", metavar="CKPT"
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="setting of the network, e.g. clip.weights=FILE; repeatable"
    ),
]


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """The values of ``--set KEY=VALUE`` by key.

    Raises:
        SettingError: one has no ``=``.
    """
    from omegaconf import OmegaConf

    from odise_pl.errors import SettingError

    changes: dict[str, Any] = {}
    for text in settings or ():
        key, equals, _ = text.partition("=")
        if not equals:
            raise SettingError(f"--set {text}: give KEY=VALUE")
        changes[key] = OmegaConf.select(OmegaConf.from_dotlist([text]), key)
    return changes


def predict(
    checkpoint: Checkpoint,
    pictures: Annotated[
        list[str],
        typer.Argument(help="files, folders and quoted patterns ('photos/**/*.jpg')", metavar="PICTURE..."),
    ],
    words: Annotated[
        str,
        typer.Option(
            help="what to look for: names separated by commas, with ':stuff' after uncountable regions "
            "(dog,grass:stuff); a list with synonyms ('[\"dog,puppy\", grass:stuff]'); a file with one class "
            "per line; or a packaged vocabulary (coco_panoptic)"
        ),
    ],
    other: Annotated[
        str | None, typer.Option(help="background words, in the same forms: their pixels get no segment")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("predictions"),
    html: Annotated[
        bool, typer.Option("--html", help="also write index.html, a page of all results")
    ] = False,
    batch: Annotated[int, typer.Option(help="pictures in memory; those of one size share a pass", min=1)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    settings: Settings = None,
) -> None:
    """Segment pictures in your own words.

    Writes NAME_segments.png (to look at), NAME_ids.png (COCO's panoptic PNG) and NAME.json for each picture.
    Skips pictures that cannot be read, with exit status 1.
    """
    from odise_pl.runs.console import fast_imports, quiet_libraries

    quiet_libraries()
    with fast_imports():
        from odise_pl.prediction.predict import predict as predict_pictures

    changes = parse_settings(settings)
    unread = predict_pictures(checkpoint, pictures, words, out, changes, device, other, batch, html)
    for problem in unread:
        print(f"error: {problem}", file=sys.stderr)
    raise typer.Exit(1 if unread else 0)


def kmeans(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", exists=True, dir_okay=False)],
    tap: Annotated[
        str | None,
        typer.Option(help="a feature map, e.g. encoder.2, unet.up.2, decoder.1 (default: of stride 16)"),
    ] = None,
    timestep: Annotated[
        int | None, typer.Option(help="step of a diffusion model (default: the backbone's)", min=0, max=999)
    ] = None,
    clusters: Annotated[int, typer.Option(help="number of clusters", min=1)] = 8,
    backbone: Annotated[str, typer.Option(help="name in conf/backbone")] = "stable_diffusion_v1",
    weights: Annotated[str | None, typer.Option(help="file, folder, hub id or random")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="shorter side of the network's input (default: the backbone's)", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="of k-means and of random weights")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder (default: beside the image)", file_okay=False)
    ] = None,
) -> None:
    """Draw k-means clusters of frozen features beside images, as IMAGE_kmeans.png."""
    from odise_pl.prediction.kmeans import draw_clusters

    for path in draw_clusters(images, out, tap, timestep, clusters, backbone, weights, size, seed):
        print(path)


def check(
    shards: Annotated[str, typer.Argument(help="folder or URL of a shard set", metavar="DIR")],
    out: Annotated[
        Path, typer.Option(help="contact sheet of labels over images", metavar="PNG", dir_okay=False)
    ] = Path("check.png"),
    count: Annotated[int, typer.Option(help="images on the sheet", min=1, max=100)] = 12,
) -> None:
    """Look at a shard set: draw labels over images, and count its classes.

    Decodes every sample; exit status 1 if some are damaged.
    """
    from rich.console import Console

    from odise_pl.data.manifest import open_shard_set

    shard_set = open_shard_set(shards)
    from odise_pl.prediction.check import write_check

    summary = write_check(shard_set, out, count)
    Console().print(summary.table().terminal())
    print(f"labels over images: {out}")
    raise typer.Exit(1 if summary.damage else 0)
