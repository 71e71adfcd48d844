"""``odise prepare`` packs a data set into shards, ``odise captions`` adds captions to shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from odise_pl.data.prepare.benchmarks import BENCHMARKS, Benchmark

if TYPE_CHECKING:
    from odise_pl.data.manifest import Manifest
    from odise_pl.data.prepare.source import Source

_MEGABYTE = 10**6
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
_OwnSplit = Annotated[
    str | None, typer.Option(help="A folder of the data set; with --val, train or val. Default: everything.")
]
_Val = Annotated[
    float | None,
    typer.Option(
        "--val",
        metavar="SHARE",
        min=0.001,
        max=0.999,
        help="For data without splits: share of the images that --split val takes; --split train takes the "
        "others.",
    ),
]
_Classes = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        help="The classes: a file with one per line (dog,puppy or grass:stuff), a list of such words, or a "
        "packaged vocabulary.",
    ),
]


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


@app.command()
def labelme(
    root: _Root,
    out: _Out,
    split: _OwnSplit = None,
    val: _Val = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of the images (default: beside the JSON files).")
    ] = None,
    vocabulary: _Classes = None,
    workers: _Workers = None,
    max_shard_mb: _ShardSize = 64,
    skip_bad: _SkipBad = False,
) -> None:
    """Labelme: a JSON file per image. The classes are the labels, as things, without --vocabulary."""
    from odise_pl.data.prepare.labelme import read_labelme

    read = partial(read_labelme, root, images=images, vocabulary=vocabulary)
    _pack(_divide(read, split, val), out, workers, max_shard_mb, skip_bad)


@app.command()
def yolo(
    root: _Root,
    out: _Out,
    split: _OwnSplit = None,
    val: _Val = None,
    vocabulary: _Classes = None,
    workers: _Workers = None,
    max_shard_mb: _ShardSize = 64,
    skip_bad: _SkipBad = False,
) -> None:
    """YOLO segmentation. The classes are the names in data.yaml, as things, without --vocabulary."""
    from odise_pl.data.prepare.yolo import read_yolo

    read = partial(read_yolo, root, vocabulary=vocabulary)
    _pack(_divide(read, split, val), out, workers, max_shard_mb, skip_bad)


@app.command()
def maps(
    root: _Root,
    out: _Out,
    split: _OwnSplit = None,
    val: _Val = None,
    images: Annotated[str, typer.Option(help="Folder of the images.")] = "images",
    labels: Annotated[
        str, typer.Option(help="Folder of the class maps: PNG files of one channel.")
    ] = "labels",
    instances: Annotated[
        str | None,
        typer.Option(help="Folder of the instance maps: PNG files of one channel, 0 for no object."),
    ] = None,
    vocabulary: _Classes = None,
    void: Annotated[
        list[int] | None,
        typer.Option(help="Value of pixels without a class (default: 255). Repeat the option for more."),
    ] = None,
    workers: _Workers = None,
    max_shard_mb: _ShardSize = 64,
    skip_bad: _SkipBad = False,
) -> None:
    """Class maps, and instance maps for objects. The classes are in classes.txt without --vocabulary."""
    from odise_pl.data.prepare.maps import VOID, read_maps

    read = partial(read_maps, root, images=images, labels=labels, instances=instances, vocabulary=vocabulary)
    source = _divide(partial(read, void=void or VOID), split, val)
    _pack(source, out, workers, max_shard_mb, skip_bad)


@app.command()
def voc(
    root: _Root,
    split: Annotated[str, typer.Option(help="A list in ImageSets/Segmentation: train, val, trainval.")],
    out: _Out,
    vocabulary: _Classes = None,
    workers: _Workers = None,
    max_shard_mb: _ShardSize = 64,
    skip_bad: _SkipBad = False,
) -> None:
    """Objects in Pascal VOC's layout. The classes are VOC's without --vocabulary."""
    from odise_pl.data.prepare.maps import read_voc_layout

    _pack(read_voc_layout(root, split, vocabulary), out, workers, max_shard_mb, skip_bad)


def _divide(read: Callable[..., Source], split: str | None, val: float | None) -> Source:
    """Read the folder of a split, or a share of everything."""
    if val is None:
        return read(split=split)
    from odise_pl.data.prepare.shares import take_share

    return take_share(read(), split, val)


def _add_benchmark(name: str, benchmark: Benchmark) -> None:
    def prepare_benchmark(
        root: _Root,
        out: _Out,
        split: Annotated[
            str | None, typer.Option(help="Default: validation of ADE20K, val of the others.")
        ] = None,
        workers: _Workers = None,
        max_shard_mb: _ShardSize = 64,
        skip_bad: _SkipBad = False,
    ) -> None:
        _pack(benchmark.read(root, split), out, workers, max_shard_mb, skip_bad)

    app.command(name, help=benchmark.help)(prepare_benchmark)


for _name, _benchmark in BENCHMARKS.items():
    _add_benchmark(_name, _benchmark)


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
