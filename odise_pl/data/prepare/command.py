"""Pack a data set into shards, or write captions into shards: ``python -m odise_pl.data.prepare --help``.

Imports no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from odise_pl.arguments import ends_with_message, positive
from odise_pl.data.manifest import Manifest
from odise_pl.data.prepare import ade20k, captions, coco, coco_instances, pascal
from odise_pl.data.prepare.packing import PROBLEMS, prepare

_MEGABYTE = 10**6


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m odise_pl.data.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    coco.add_command(commands)
    coco_instances.add_command(commands)
    ade20k.add_commands(commands)
    pascal.add_commands(commands)
    for command in commands.choices.values():
        command.set_defaults(prepare=_pack)
        command.add_argument(
            "--max-shard-mb",
            type=_size,
            default=64,
            help="limit of a shard's size in millions of bytes (default 64); there should be at least as "
            "many shards as devices times loader workers",
        )
    captions.add_command(commands)
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, required=True, help="folder of the shard set")
        command.add_argument("--workers", type=positive, help="processes (default: one for each core)")
        command.add_argument(
            "--skip-bad", action="store_true", help="leave entries with problems out instead of stopping"
        )
    return parser


def _pack(options: argparse.Namespace) -> Manifest:
    source = options.read(options)
    limit = round(options.max_shard_mb * _MEGABYTE)
    manifest = prepare(source, options.out, options.workers or os.cpu_count() or 1, limit, options.skip_bad)
    for note in source.notes:
        print(f"note: {note}")
    return manifest


def _size(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


@ends_with_message
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        manifest: Manifest = options.prepare(options)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    print(_report(manifest, options.out))
    return 0


def _report(manifest: Manifest, folder: Path) -> str:
    size = sum(shard.bytes for shard in manifest.shards) / _MEGABYTE
    text = (
        f"{folder}: {manifest.counts.samples} samples, shards: {len(manifest.shards)}, {size:.1f} MB, "
        f"vocabulary {manifest.vocabulary.name}"
    )
    if manifest.captioning is not None:
        text += f", captions by {manifest.captioning.model}"
    if not manifest.counts.left_out:
        return text
    return f"{text}; {manifest.counts.left_out} entries were left out, see {folder / PROBLEMS}"


if __name__ == "__main__":
    sys.exit(main())
