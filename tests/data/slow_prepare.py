"""The prepare command on a slow disk, so that a test can kill it on its way: ROOT OUT WORKERS."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from odise_pl.data.prepare.validate import verbatim_members
from odise_pl.data.records import SourceSample

SHARD_BYTES = 20_000


def slow_members(sample: SourceSample) -> dict[str, bytes]:
    time.sleep(0.2)
    return verbatim_members(sample)


if __name__ == "__main__":
    from slow_prepare import slow_members  # by this name worker processes find it

    source = replace(read_coco(Path(sys.argv[1]), "train2017"), members=slow_members)
    prepare(source, Path(sys.argv[2]), int(sys.argv[3]), SHARD_BYTES, skip_bad=False)
