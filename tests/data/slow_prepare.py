"""Prepare a data set slowly, so that a test can kill the run: ROOT OUT WORKERS."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from odise_pl.data.prepare.panoptic import pack_panoptic
from odise_pl.data.prepare.source import Members, SourceSample

SHARD_BYTES = 40_000


def pack_slowly(sample: SourceSample) -> tuple[Members, int]:
    time.sleep(0.05)
    return pack_panoptic(sample)


if __name__ == "__main__":
    from slow_prepare import pack_slowly  # worker processes import it by this name

    source = replace(read_coco(Path(sys.argv[1]), "train2017"), pack=pack_slowly)
    prepare(source, Path(sys.argv[2]), int(sys.argv[3]), SHARD_BYTES)
