"""Writing shards: the same bytes whatever the number of processes and interruptions. Imports no torch.

Which sample goes into which shard follows from the sizes of its members alone. A shard is written under
a temporary name and renamed when it is complete; a note in a folder that is removed at the end says what it
was made from. A run that starts again keeps the shards that have a note.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from odise_pl.data.manifest import Shard
from odise_pl.data.records import DataError, SourceSample

WORK = ".prepare"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class ShardPlan:
    """A shard that is to be written: its file name and its samples in order."""

    name: str
    samples: tuple[SourceSample, ...]


def sample_bytes(sizes: Iterable[int]) -> int:
    """What a sample takes in a tar file, from the sizes of its members."""
    return sum(tarfile.BLOCKSIZE + _rounded(size, tarfile.BLOCKSIZE) for size in sizes)


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def plan_shards(
    samples: Sequence[SourceSample], sizes: Sequence[int], max_bytes: int, prefix: str
) -> tuple[ShardPlan, ...]:
    """Distribute samples in order, so that no shard exceeds ``max_bytes`` unless a single sample does."""
    room = max_bytes - tarfile.RECORDSIZE  # the end of a tar file is padded to a record
    groups: list[list[SourceSample]] = []
    filled = 0
    for sample, size in zip(samples, sizes, strict=True):
        if not groups or filled + size > room:
            groups.append([])
            filled = 0
        groups[-1].append(sample)
        filled += size
    return tuple(ShardPlan(f"{prefix}-{i:06d}.tar", tuple(group)) for i, group in enumerate(groups))


class _HashedFile(io.RawIOBase):
    """Counts and hashes what is written through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


Packed = tuple[str, Mapping[str, bytes]]  # key of a sample, and its members by suffix


def write_shard(
    plan: ShardPlan,
    folder: Path,
    digest: str,
    members: Callable[[SourceSample], Mapping[str, bytes]],
) -> Shard:
    """Write one shard of a plan and its note, both complete or not at all.

    Raises:
        DataError: a source file cannot be read any more.
    """
    return write_packed(plan.name, _packed(plan.samples, members), folder, digest)


def _packed(
    samples: Iterable[SourceSample], members: Callable[[SourceSample], Mapping[str, bytes]]
) -> Iterator[Packed]:
    for sample in samples:
        try:
            contents = members(sample)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read any more ({error.strerror})") from error
        yield sample.key, contents


def write_packed(name: str, samples: Iterable[Packed], folder: Path, digest: str) -> Shard:
    """Write the shard ``name`` and its note, which says by ``digest`` what it was made from."""
    partial, count = folder / WORK / (name + _PARTIAL), 0
    with partial.open("wb") as file:
        hashed = _HashedFile(file)
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
            for key, contents in samples:
                _add(tar, key, contents)
                count += 1
        _flush(file)
    shard = Shard(name, count, hashed.bytes, hashed.sha256)
    note = {"digest": digest, "shard": asdict(shard)}
    write_file(folder / WORK / f"{name}.json", json.dumps(note).encode())
    partial.rename(folder / name)  # last: a shard without note is not of this run
    return shard


def _add(tar: tarfile.TarFile, key: str, contents: Mapping[str, bytes]) -> None:
    for suffix, content in contents.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")  # owner, group and time stay zero
        info.size, info.mode = len(content), 0o644
        tar.addfile(info, io.BytesIO(content))


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there completely or not at all, even after a power cut."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("wb") as file:
        file.write(content)
        _flush(file)
    partial.rename(path)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def noted_shards(folder: Path) -> set[Path]:
    """The shards that an interrupted run has written, or was about to."""
    return {folder / note.name.removesuffix(".json") for note in (folder / WORK).glob("*.tar.json")}


def finished_shards(names: Iterable[str], folder: Path, digest: str) -> dict[str, Shard]:
    """The shards of these names that an interrupted run completed.

    Raises:
        DataError: they were made from something else.
    """
    finished = {}
    for note in sorted((folder / WORK).glob("*.tar.json")):
        content = json.loads(note.read_bytes())
        shard = Shard(**content["shard"])
        if content["digest"] != digest:
            raise DataError(
                f"{folder} holds shards of an interrupted run with other options, another source, or source "
                f"files that have changed since; repeat that run's command, delete the folder, or use "
                f"another --out"
            )
        if _is_complete(folder / shard.name, shard):
            finished[shard.name] = shard
    return {name: finished[name] for name in names if name in finished}


def _is_complete(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes
