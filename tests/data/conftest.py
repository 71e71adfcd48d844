from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mini_coco import make_coco, pack


@pytest.fixture(scope="session")
def make_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a shard set with this number of samples, a few per shard."""

    def make(count: int, megabytes: float = 0.03) -> Path:
        folder = tmp_path_factory.mktemp("set")
        make_coco(folder / "coco", count)
        pack(folder / "coco", folder / "shards", max_shard_bytes=round(megabytes * 10**6))
        return folder / "shards"

    return make


@pytest.fixture(scope="session")
def shards(make_shards: Callable[..., Path]) -> Path:
    """23 samples in several shards; tests must not change them."""
    return make_shards(23)
