from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mini_coco import make_coco

from odise_pl.data.prepare.command import main


def pack(root: Path, out: Path, *options: str, split: str = "train2017") -> int:
    """Run the prepare command in this process."""
    return main(
        ["coco", "--root", str(root), "--split", split, "--out", str(out), "--workers", "1", *options]
    )


@pytest.fixture(scope="session")
def make_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a shard set of so many samples, a few in each shard."""

    def make(count: int, megabytes: float = 0.03) -> Path:
        folder = tmp_path_factory.mktemp("set")
        make_coco(folder / "coco", count)
        assert pack(folder / "coco", folder / "shards", "--max-shard-mb", str(megabytes)) == 0
        return folder / "shards"

    return make


@pytest.fixture(scope="session")
def shards(make_shards: Callable[..., Path]) -> Path:
    """23 samples in several shards; not to be changed."""
    return make_shards(23)
