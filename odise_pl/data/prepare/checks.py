"""Checking samples in chunks whose results outlive an interruption. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from odise_pl.data.files import SourceFile
from odise_pl.data.prepare.shards import WORK, sample_bytes, write_file
from odise_pl.data.records import Examined, Problem, SourceSample

CHUNK = 64


@dataclass(frozen=True)
class Chunk:
    """Some samples of a source.

    Attributes:
        index: place of the chunk.
        samples: its samples.
    """

    index: int
    samples: tuple[SourceSample, ...]


@dataclass(frozen=True)
class Checked:
    """What was found out about a chunk.

    Attributes:
        digest: of the samples and of the sizes and times of their files.
        bytes: what each sample takes in a shard; None if it has problems.
        segments: how many each sample has.
        problems: all that is wrong.
    """

    digest: str
    bytes: tuple[int | None, ...]
    segments: tuple[int, ...]
    problems: tuple[Problem, ...]


def chunks(samples: Sequence[SourceSample]) -> list[Chunk]:
    """Cut a source's samples into chunks."""
    starts = range(0, len(samples), CHUNK)
    return [Chunk(i, tuple(samples[start : start + CHUNK])) for i, start in enumerate(starts)]


def check_chunk(chunk: Chunk, folder: Path, examine: Callable[[SourceSample], Examined]) -> Checked:
    """Check a chunk, or return what an interrupted run noted if nothing has changed since."""
    digest = _digest(chunk.samples)
    note = folder / WORK / f"checked-{chunk.index:06d}.json"
    noted = _noted(note)
    if noted is not None and noted.digest == digest:
        return noted
    found = [examine(sample) for sample in chunk.samples]
    checked = Checked(
        digest,
        tuple(None if one.problems else sample_bytes(one.sizes) for one in found),
        tuple(one.segments for one in found),
        tuple(problem for one in found for problem in one.problems),
    )
    write_file(note, json.dumps(asdict(checked)).encode())
    return checked


def _noted(note: Path) -> Checked | None:
    if not note.exists():
        return None
    data = json.loads(note.read_bytes())
    problems = tuple(Problem(**problem) for problem in data["problems"])
    return Checked(data["digest"], tuple(data["bytes"]), tuple(data["segments"]), problems)


def _digest(samples: Sequence[SourceSample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        facts = [(file.name, _facts(file)) for file in sample.files]
        digest.update(repr((sample.key, facts, sample.record(), sample.instances)).encode())
    return digest.hexdigest()


def _facts(file: SourceFile) -> tuple[int, int] | None:
    try:
        return file.facts()
    except OSError:  # examining reports a file that is missing
        return None
