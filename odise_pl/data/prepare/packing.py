"""Packing a source into a shard set: check everything, then write, and go on after interruptions.

Imports no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from odise_pl.data.manifest import (
    FILE_NAME,
    FORMAT,
    Counts,
    Manifest,
    Origin,
    Shard,
    ShardSet,
    check_shards,
    missing_shards,
)
from odise_pl.data.prepare import processes
from odise_pl.data.prepare.checks import Checked, check_chunk, chunks
from odise_pl.data.prepare.shards import (
    WORK,
    ShardPlan,
    finished_shards,
    noted_shards,
    plan_shards,
    write_file,
    write_shard,
)
from odise_pl.data.records import DataError, Problem, Source, SourceSample

PROBLEMS = "problems.json"
_SHOWN = 3


def prepare(source: Source, folder: Path, workers: int, max_shard_bytes: int, skip_bad: bool) -> Manifest:
    """Check every sample of a source and write the shard set; an interrupted run is continued.

    Args:
        source: what is packed.
        folder: the shard set; it is made if it does not exist.
        workers: processes.
        max_shard_bytes: limit of a shard's size.
        skip_bad: leave entries with problems out instead of stopping.

    Raises:
        DataError: there are problems (``problems.json`` lists them), or the folder holds something else.
    """
    if (folder / FILE_NAME).exists():
        return _finished_before(source, folder, max_shard_bytes)
    refuse_strangers(folder)
    with work_folder(folder), progress_bars() as progress:
        checked = _check(source, folder, workers, progress)
        problems = sort_problems({*source.problems, *(p for chunk in checked for p in chunk.problems)})
        settle_problems(_origin(source), problems, folder, skip_bad)
        good = _good(source.samples, checked)
        if not good:
            why = f"; {folder / PROBLEMS} says why" if problems else ""
            raise DataError(f"{source.annotations} of {source.split}: no sample is left to pack{why}")
        prefix = re.sub(r"[^\w.-]+", "_", source.split).lstrip(".-") or "shard"
        plans = plan_shards([g.sample for g in good], [g.bytes for g in good], max_shard_bytes, prefix)
        digest = _digest(source, checked, max_shard_bytes)
        shards = _write(source, plans, folder, digest, workers, progress)
        manifest = _manifest(source, good, problems, shards, max_shard_bytes)
        write_file(folder / FILE_NAME, manifest.to_bytes())
    return manifest


def _finished_before(source: Source, folder: Path, max_shard_bytes: int) -> Manifest:
    shard_set = check_shards(folder)
    made_from = (shard_set.manifest.source, shard_set.manifest.vocabulary, shard_set.manifest.max_shard_bytes)
    if made_from != (_origin(source), source.vocabulary, max_shard_bytes):
        raise DataError(
            f"{folder} already holds the shard set '{shard_set.manifest.name}', made from another annotation "
            f"file or with other options; delete the folder, or use another --out"
        )
    return whole(shard_set, folder)


def whole(shard_set: ShardSet, folder: Path) -> Manifest:
    """The manifest of a finished set.

    Raises:
        DataError: shards are missing or damaged.
    """
    missing = missing_shards(shard_set)
    if missing:
        raise DataError(
            f"{missing[0]}: is missing or damaged ({len(missing)} such shards); delete {folder} and prepare "
            f"it anew"
        )
    shutil.rmtree(folder / WORK, ignore_errors=True)  # left by a run that was killed at its very end
    return shard_set.manifest


def refuse_strangers(folder: Path) -> None:
    """A new shard set goes into an empty folder, or continues an interrupted one."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; --out names a folder")
    strangers = sorted({*folder.glob("*.tar")} - noted_shards(folder))
    if strangers:
        raise DataError(
            f"{folder} holds {strangers[0].name}, which this command has not written; use an empty folder "
            f"for --out"
        )


@contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """Holds notes of what is done; it stays when the run is interrupted, and a second run is kept out."""
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder, work / "lock"):
        yield
        shutil.rmtree(work)


@contextmanager
def sole_writer(folder: Path, lock: Path) -> Iterator[None]:
    """Keep other runs out of a folder by a lock on a file, which goes with the process, however that ends.

    Raises:
        DataError: another run has the lock.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another run is writing to {folder}; wait for it to end") from error
        yield


def progress_bars() -> Progress:
    """On stderr, one line for each stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _check(source: Source, folder: Path, workers: int, progress: Progress) -> list[Checked]:
    task = progress.add_task("checking", total=len(source.samples))
    parts = chunks(source.samples)
    results: dict[int, Checked] = {}
    for index, checked in processes.run(
        partial(check_chunk, folder=folder, examine=source.examine), parts, workers
    ):
        results[index] = checked
        progress.advance(task, len(parts[index].samples))
    return [results[index] for index in range(len(parts))]


@dataclass(frozen=True)
class _Good:
    """A sample without problems: its size in a shard and its number of segments."""

    sample: SourceSample
    bytes: int
    segments: int


def _good(samples: Sequence[SourceSample], checked: list[Checked]) -> list[_Good]:
    sizes = [size for chunk in checked for size in chunk.bytes]
    segments = [count for chunk in checked for count in chunk.segments]
    facts = zip(samples, sizes, segments, strict=True)
    return [_Good(sample, size, count) for sample, size, count in facts if size is not None]


def sort_problems(problems: set[Problem]) -> list[Problem]:
    """In an order that depends on nothing else."""
    return sorted(problems, key=lambda problem: (problem.sample, problem.file, problem.cause))


def settle_problems(
    origin: Origin, problems: list[Problem], folder: Path, skip_bad: bool, undo: bool = True
) -> None:
    """List the problems in ``problems.json``.

    Args:
        origin: what is packed.
        problems: all there are.
        folder: the shard set.
        skip_bad: whether one can go on without the entries that have problems.
        undo: when one cannot go on, remove what an interrupted run did when the files were still good.

    Raises:
        DataError: there are problems, which may not be skipped.
    """
    path = folder / PROBLEMS
    if not problems:
        path.unlink(missing_ok=True)
        return
    data = {
        "format": FORMAT,
        "source": asdict(origin),
        "left_out": left_out(problems),
        "problems": [asdict(problem) for problem in problems],
    }
    write_file(
        path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
    )
    if not skip_bad:
        if undo:
            _undo(folder)
        done = "Nothing was written" if undo else "What was done before is kept"
        raise DataError(
            f"{_summary(problems)}; {path} lists them all. {done}: mend them, or leave these "
            f"entries out with --skip-bad"
        )


def _undo(folder: Path) -> None:
    for shard in noted_shards(folder):
        shard.unlink(missing_ok=True)
    shutil.rmtree(folder / WORK)


def left_out(problems: list[Problem]) -> int:
    """Entries with problems."""
    return len({problem.sample for problem in problems})


def _summary(problems: list[Problem]) -> str:
    first = "; ".join(f"{problem.file}: {problem.cause}" for problem in problems[:_SHOWN])
    more = " ..." if len(problems) > _SHOWN else ""
    count, entries = len(problems), left_out(problems)
    found = f"{count} problem{'s' * (count > 1)} in {entries} {'entries' if entries > 1 else 'entry'}"
    return f"{found} ({first}{more})"


def _digest(source: Source, checked: list[Checked], max_shard_bytes: int) -> str:
    facts = (asdict(_origin(source)), source.vocabulary.to_json(), max_shard_bytes)
    return hashlib.sha256(repr((facts, [chunk.digest for chunk in checked])).encode()).hexdigest()


def _write(
    source: Source, plans: tuple[ShardPlan, ...], folder: Path, digest: str, workers: int, progress: Progress
) -> list[Shard]:
    task = progress.add_task("writing", total=sum(len(plan.samples) for plan in plans))
    done = finished_shards([plan.name for plan in plans], folder, digest)
    progress.advance(task, sum(shard.samples for shard in done.values()))
    function = partial(write_shard, folder=folder, digest=digest, members=source.members)
    for _, shard in processes.run(function, [plan for plan in plans if plan.name not in done], workers):
        done[shard.name] = shard
        progress.advance(task, shard.samples)
    return [done[plan.name] for plan in plans]


def _origin(source: Source) -> Origin:
    return Origin(source.dataset, source.split, source.annotations, source.sha256)


def _manifest(
    source: Source,
    good: list[_Good],
    problems: list[Problem],
    shards: list[Shard],
    max_shard_bytes: int,
) -> Manifest:
    counts = Counts(
        samples=len(good),
        segments=sum(one.segments for one in good),
        captions=sum(len(one.sample.captions) for one in good),
        left_out=left_out(problems),
        problems=len(problems),
    )
    name = f"{source.dataset}_{source.split}"
    origin = _origin(source)
    return Manifest(name, source.vocabulary, counts, tuple(shards), origin, max_shard_bytes, source.measures)
