"""Write shards reproducibly, with any number of processes and after interruptions. Imports no torch.

The distribution of samples to shards depends only on their sizes. A shard gets its final name when it is
complete, so a resumed run only writes the missing shards.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from odise_pl.data.manifest import FILE_NAME, Manifest, Shard
from odise_pl.data.prepare.processes import run
from odise_pl.data.prepare.source import Members
from odise_pl.data.records import DataError
from odise_pl.files import atomic_write, write_bytes, write_text

_WORK = ".prepare"  # folder for incomplete shards
_FINGERPRINT = f"{_WORK}/made_from"  # digest of the source and options of complete shards
_LOCK = ".prepare.lock"
_T = TypeVar("_T")

Packed = tuple[str, Members]  # key and members of a sample


@dataclass(frozen=True)
class ShardPlan:
    """A shard to write: file name, number of samples, and a picklable function that reads them."""

    name: str
    samples: int
    read: Callable[[], Iterable[Packed]]


def sample_bytes(members: Members) -> int:
    """Size of a sample in a tar file, where each member has a header and is padded to a block."""
    block = tarfile.BLOCKSIZE
    return sum(block + -(-len(content) // block) * block for content in members.values())


def group_by_size(samples: Sequence[_T], sizes: Sequence[int], max_bytes: int) -> list[list[_T]]:
    """Distribute samples to shards in order; only a shard with a single sample may exceed ``max_bytes``."""
    room = max_bytes - tarfile.RECORDSIZE  # the end of a tar file is padded to a record
    groups: list[list[_T]] = []
    filled = 0
    for sample, size in zip(samples, sizes, strict=True):
        if not groups or filled + size > room:
            groups.append([])
            filled = 0
        groups[-1].append(sample)
        filled += size
    return groups


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Create and lock the folder of a shard set.

    Raises:
        DataError: another run has locked it, or it has other tar files.
        OSError: it cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / _LOCK
    try:
        with FileLock(lock, timeout=0):
            try:
                foreign = [] if (folder / _FINGERPRINT).exists() else sorted(folder.glob("*.tar"))
                if foreign:
                    raise DataError(f"{foreign[0]} is of another data set; use an empty folder for --out")
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise DataError(f"another run is writing to {folder}; wait until it has finished") from error


def write_shards(
    plans: Sequence[ShardPlan], folder: Path, fingerprint: object, workers: int
) -> tuple[Shard, ...]:
    """Write the missing shards.

    Args:
        plans: all shards in order.
        folder: the shard set.
        fingerprint: its ``repr`` identifies source and options; a run with another one cannot be resumed.
        workers: number of processes.

    Raises:
        DataError: the folder has shards of an interrupted run with another source or options, or a source
            file can no longer be read.
    """
    digest = hashlib.sha256(repr(fingerprint).encode()).hexdigest()
    note = folder / _FINGERPRINT
    if note.exists() and note.read_text() != digest:
        raise DataError(
            f"{folder} has shards of an interrupted run with other options, another source, or source "
            f"files that have changed; repeat its command, delete the folder, or use another --out"
        )
    note.parent.mkdir(exist_ok=True)
    write_text(note, digest)
    write = partial(_write_shard, folder=folder)
    return tuple(run(write, plans, workers, "writing shards"))


def _write_shard(plan: ShardPlan, folder: Path) -> Shard:
    path = folder / plan.name
    if not path.exists():
        complete = folder / _WORK / plan.name
        with (
            atomic_write(complete) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
        ):
            for key, members in plan.read():
                _add(tar, key, members)
        complete.rename(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(plan.name, plan.samples, path.stat().st_size, digest)


def _add(tar: tarfile.TarFile, key: str, members: Members) -> None:
    for suffix, content in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")  # owner, group and time are zero
        info.size, info.mode = len(content), 0o644
        tar.addfile(info, io.BytesIO(content))


def write_manifest(manifest: Manifest, folder: Path) -> Manifest:
    """Write ``dataset.json``, which completes the shard set."""
    write_bytes(folder / FILE_NAME, manifest.to_bytes())
    shutil.rmtree(folder / _WORK)
    return manifest
