"""Read and change the members of a shard."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path


def members(shard: Path) -> dict[str, bytes]:
    """All members by name."""
    with tarfile.open(shard) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def rewrite(shard: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Change or drop members of a shard."""
    before = members(shard)
    with tarfile.open(shard, "w") as tar:
        for name, content in before.items():
            changed = change(name, content)
            if changed is not None:
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                tar.addfile(info, io.BytesIO(changed))


def unlabel(shard: Path, ending: str) -> None:
    """Remove the labels of samples whose key has this ending."""

    def change(name: str, content: bytes) -> bytes | None:
        key, _, member = name.partition(".")
        if not key.endswith(ending):
            return content
        if member == "json":
            record = json.loads(content)
            del record["segments_info"]
            return json.dumps(record).encode()
        return None if member == "panoptic.png" else content

    rewrite(shard, change)
