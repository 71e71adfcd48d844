"""``odise prepare`` packs a data set into shards, ``odise captions`` adds captions to shards."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from odise_pl.data.manifest import Manifest
    from odise_pl.data.prepare.source import Source

_MEGABYTE = 10**6
_BENCHMARKS = {
    "ade150": "ADE20K, 150 classes: ADEChallengeData2016 and annotations_instance.",
    "ade847": "ADE20K, 847 classes: ADE20K_2021_17_01.",
    "pc59": "PASCAL-Context, 59 classes: images of VOC2010 and trainval.tar.gz.",
    "pc459": "PASCAL-Context, 459 classes: images of VOC2010 and trainval.tar.gz.",
    "pas21": "Pascal VOC, 20 classes and background: VOC2012.",
}

app = typer.Typer(help="Pack a data set into shards.", no_args_is_help=True)

_Root = Annotated[
    list[Path],
    typer.Option(
        help="Folder with the data set, unpacked or in zip archives, or a zip archive. "
        "Repeat the option to search several."
    ),
]
_Out = Annotated[Path, typer.Option(help="Folder of the shard set.")]
_Split = Annotated[str, typer.Option(help="train2017, val2017, or another name.")]
_Vocabulary = Annotated[
    str,
    typer.Option(
        help="auto: the packaged COCO classes if the annotation file lists exactly these, else its own; "
        "annotation: its own; or the name of a packaged vocabulary or a vocabulary file."
    ),
]
_ShardSize = Annotated[
    float,
    typer.Option(
        "--max-shard-mb",
        min=0.001,
        help="Limit of a shard's size in millions of bytes. Use at least as many shards as "
        "devices times loader workers.",
    ),
]
_Workers = Annotated[int | None, typer.Option(min=1, help="Processes (default: one for each core).")]
_SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip entries with problems.")]


class Device(StrEnum):
    """Where a model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.command()
def coco(
    root: _Root,
    split: _Split,
    out: _Out,
    vocabulary: _Vocabulary = "auto",
    workers: _Workers = None,
    max_shard_mb: _ShardSize = 64,
    skip_bad: _SkipBad = False,
) -> None:
    """COCO panoptic, or other data in its layout."""
    from odise_pl.data.prepare.coco import read_coco

    _pack(read_coco(root, split, vocabulary), out, workers, max_shard_mb, skip_bad)


@app.command()
def coco_instances(
    root: _Root,
    split: _Split,
    out: _Out,
    images: Annotated[str | None, typer.Option(help="Folder of the images (default: SPLIT).")] = None,
    annotations: Annotated[
        str | None, typer.Option(help="The annotation file (default: annotations/instances_SPLIT.json).")
    ] = None,
    vocabulary: _Vocabulary = "auto",
    workers: _Workers = None,
    max_shard_mb: _ShardSize = 64,
    skip_bad: _SkipBad = False,
) -> None:
    """COCO's instance format."""
    from odise_pl.data.prepare.coco_instances import read_coco_instances

    source = read_coco_instances(root, split, vocabulary, images, annotations)
    _pack(source, out, workers, max_shard_mb, skip_bad)


def _add_benchmark(name: str, what: str) -> None:
    def prepare_benchmark(
        root: _Root,
        out: _Out,
        split: Annotated[
            str | None, typer.Option(help="Default: validation of ADE20K, val of PASCAL.")
        ] = None,
        workers: _Workers = None,
        max_shard_mb: _ShardSize = 64,
        skip_bad: _SkipBad = False,
    ) -> None:
        from odise_pl.data.prepare.benchmarks import read_benchmark

        _pack(read_benchmark(name, root, split), out, workers, max_shard_mb, skip_bad)

    app.command(name, help=what)(prepare_benchmark)


for _name, _what in _BENCHMARKS.items():
    _add_benchmark(_name, _what)


def captions(
    shards: Annotated[str, typer.Option(help="Folder or URL of the shard set to caption.")],
    out: _Out,
    weights: Annotated[
        str, typer.Option(help="Folder of BLIP, or a hub id.")
    ] = "weights/blip-image-captioning-base",
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of a caption's length.")] = 20,
    device: Device = Device.auto,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes (default: one for each core, four for each GPU).")
    ] = None,
) -> None:
    """Copy a shard set and add a caption by BLIP to each sample."""
    from odise_pl.data.manifest import open_shard_set

    shard_set = open_shard_set(shards)
    from odise_pl.data.prepare.captions import CaptionModel, prepare_captions

    model = CaptionModel.find(weights, max_tokens, device)
    _report(prepare_captions(shard_set, out, model, workers or model.workers), out)


def _pack(source: Source, out: Path, workers: int | None, max_shard_mb: float, skip_bad: bool) -> None:
    from odise_pl.data.prepare.packing import prepare

    limit = round(max_shard_mb * _MEGABYTE)
    manifest = prepare(source, out, workers or os.cpu_count() or 1, limit, skip_bad)
    for note in source.notes:
        print(f"note: {note}")
    _report(manifest, out)


def _report(manifest: Manifest, folder: Path) -> None:
    size = sum(shard.bytes for shard in manifest.shards) / _MEGABYTE
    text = (
        f"{folder}: {manifest.counts.samples} samples, shards: {len(manifest.shards)}, {size:.1f} MB, "
        f"vocabulary {manifest.vocabulary.name}"
    )
    if manifest.captioning is not None:
        text += f", captions by {manifest.captioning.model}"
    if manifest.counts.left_out:
        text += f"; skipped {manifest.counts.left_out} entries with problems, see problems.json"
    print(text)
