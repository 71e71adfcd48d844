"""The evaluation benchmarks other than COCO, by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from odise_pl.data.prepare.ade20k import read_ade150, read_ade847
from odise_pl.data.prepare.pascal import read_context, read_voc
from odise_pl.data.prepare.source import Source

_READERS: dict[str, Callable[..., Source]] = {
    "ade150": read_ade150,
    "ade847": read_ade847,
    "pc59": partial(read_context, classes=59),
    "pc459": partial(read_context, classes=459),
    "pas21": read_voc,
}


def read_benchmark(name: str, root: Path | Sequence[Path], split: str | None = None) -> Source:
    """Read a split of a benchmark, by default its evaluation split.

    Raises:
        DataError: a part is missing.
    """
    return _READERS[name](root, **({"split": split} if split else {}))
