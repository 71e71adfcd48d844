"""The six benchmarks of the paper, prepared from miniature layouts."""

from __future__ import annotations

from pathlib import Path

import mini_benchmarks as mini

from odise_pl.data.prepare.command import main

# Name in evaluate.py -> how its layout is made, the options of its command, and the folder of its shards.
BENCHMARKS = {
    "coco": (mini.coco, ("coco", "--split", "val2017"), "coco_val2017"),
    "ade150": (mini.ade150, ("ade150",), "ade150_val"),
    "ade847": (mini.ade847, ("ade847",), "ade847_val"),
    "pc59": (mini.context, ("pc59",), "pc59_val"),
    "pc459": (mini.context, ("pc459",), "pc459_val"),
    "pas21": (mini.voc, ("pas21",), "pas21_val"),
}


def prepare_benchmarks(folder: Path) -> Path:
    """Shard sets of all of them where ``paths.shards`` expects them; returns that folder."""
    for name, (make, command, out) in BENCHMARKS.items():
        root = folder / "downloads" / name
        make(root)
        arguments = [*command, "--root", str(root), "--out", str(folder / "shards" / out), "--workers", "1"]
        assert main(arguments) == 0
    return folder / "shards"
