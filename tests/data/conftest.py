from __future__ import annotations

from pathlib import Path

import pytest
from mini_coco import make_coco, pack


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 samples in several shards; tests must not change them."""
    folder = tmp_path_factory.mktemp("set")
    make_coco(folder / "coco", 23)
    pack(folder / "coco", folder / "shards", max_shard_bytes=30_000)
    return folder / "shards"
