"""The evaluation benchmarks other than COCO, by name: the one list of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odise_pl.data.prepare.source import Source


@dataclass(frozen=True)
class Benchmark:
    """A data set with a fixed layout.

    Attributes:
        help: of its command: classes and archives.
        reader: ``MODULE:FUNCTION`` in this folder, imported when it is used so that ``--help`` is fast.
        options: further arguments of the reader.
    """

    help: str
    reader: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def read(self, root: Path | Sequence[Path], split: str | None = None) -> Source:
        """Read a split, by default the one for evaluation.

        Raises:
            DataError: a part is missing.
        """
        function = resolve_name(f"{__package__}.{self.reader}")
        source: Source = function(root, **self.options, **({"split": split} if split else {}))
        return source


_CONTEXT = "images of VOC2010 and trainval.tar.gz."
BENCHMARKS = {
    "ade150": Benchmark(
        "ADE20K, 150 classes: ADEChallengeData2016 and annotations_instance.", "ade20k:read_ade150"
    ),
    "ade847": Benchmark("ADE20K, 847 classes: ADE20K_2021_17_01.", "ade20k:read_ade847"),
    "pc59": Benchmark(f"PASCAL-Context, 59 classes: {_CONTEXT}", "pascal:read_context", {"classes": 59}),
    "pc459": Benchmark(f"PASCAL-Context, 459 classes: {_CONTEXT}", "pascal:read_context", {"classes": 459}),
    "pas21": Benchmark("Pascal VOC, 20 classes and background as class maps: VOC2012.", "pascal:read_voc"),
    "pas20": Benchmark("Pascal VOC, 20 classes as class maps: VOC2012.", "pascal:read_voc", {"classes": 20}),
    "cityscapes": Benchmark(
        "Cityscapes, 19 classes with objects: leftImg8bit and gtFine.", "cityscapes:read_cityscapes"
    ),
}
