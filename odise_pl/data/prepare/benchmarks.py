"""The evaluation benchmarks other than COCO, by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from odise_pl.data.prepare.ade20k import read_ade150, read_ade847
from odise_pl.data.prepare.pascal import read_context, read_voc
from odise_pl.data.prepare.source import Source
from odise_pl.data.records import DataError

_ADE = ("validation", "training")
_PASCAL = ("val", "train", "trainval")
# Name -> reader, and splits, the default first.
_BENCHMARKS: dict[str, tuple[Callable[..., Source], tuple[str, ...]]] = {
    "ade150": (read_ade150, _ADE),
    "ade847": (read_ade847, _ADE),
    "pc59": (partial(read_context, classes=59), _PASCAL),
    "pc459": (partial(read_context, classes=459), _PASCAL),
    "pas21": (read_voc, _PASCAL),
}


def read_benchmark(name: str, root: Path | Sequence[Path], split: str | None = None) -> Source:
    """Read a split of a benchmark, by default its evaluation split.

    Raises:
        DataError: the split is unknown, or a part is missing.
    """
    read, splits = _BENCHMARKS[name]
    if split not in (None, *splits):
        raise DataError(f"--split {split}: {name} has {', '.join(splits)}")
    return read(root, split or splits[0])
