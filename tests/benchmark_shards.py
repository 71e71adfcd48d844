"""The six benchmarks of the paper, prepared from miniature layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mini_benchmarks as mini

from odise_pl.data.prepare.benchmarks import BENCHMARKS
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from odise_pl.data.prepare.source import Source

MAKE: dict[str, Callable[[Path], mini.Mini]] = {
    "ade150": mini.ade150,
    "ade847": mini.ade847,
    "pc59": mini.context,
    "pc459": mini.context,
    "pas21": mini.voc,
}
# Name in evaluate.py -> how its layout is made and read, and the folder of its shards.
LAYOUTS: dict[str, tuple[Callable[[Path], object], Callable[[Path], Source], str]] = {
    "coco": (mini.coco, partial(read_coco, split="val2017"), "coco_val2017"),
    **{name: (make, BENCHMARKS[name].read, f"{name}_val") for name, make in MAKE.items()},
}


def prepare_benchmarks(folder: Path) -> Path:
    """Shard sets of all of them where ``paths.shards`` expects them; returns that folder."""
    for name, (make, read, out) in LAYOUTS.items():
        make(folder / "downloads" / name)
        prepare(read(folder / "downloads" / name), folder / "shards" / out)
    return folder / "shards"
