"""Pack a data set into shards: ``python -m odise_pl.data.prepare DATASET --help``. Imports no torch."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from odise_pl.data import coco, processes
from odise_pl.data.checks import Checked, check_chunk, chunks
from odise_pl.data.manifest import (
    FILE_NAME,
    FORMAT,
    Counts,
    Manifest,
    Origin,
    Shard,
    check_shards,
    missing_shards,
)
from odise_pl.data.records import DataError, Problem, Source, SourceSample
from odise_pl.data.shards import WORK, ShardPlan, finished_shards, plan_shards, write_file, write_shard

PROBLEMS = "problems.json"
_MEGABYTE = 10**6
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
    _refuse_strangers(folder)
    with _work_folder(folder), _progress() as progress:
        checked = _check(source, folder, workers, progress)
        problems = _sorted({*source.problems, *(p for chunk in checked for p in chunk.problems)})
        _settle_problems(source, problems, folder, skip_bad)
        good = _good(source.samples, checked)
        if not good:
            raise DataError(f"{source.annotations} of {source.split}: no sample is left to pack")
        plans = plan_shards(
            [s for s, _ in good], [size for _, size in good], max_shard_bytes, source.split.replace("/", "_")
        )
        digest = _digest(source, checked, max_shard_bytes)
        shards = _write(source, plans, folder, digest, workers, progress)
        manifest = _manifest(source, [s for s, _ in good], problems, shards, max_shard_bytes)
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
    missing = missing_shards(shard_set)
    if missing:
        raise DataError(
            f"{missing[0]}: is missing or damaged ({len(missing)} such shards); delete {folder} and prepare "
            f"it anew"
        )
    shutil.rmtree(folder / WORK, ignore_errors=True)  # left by a run that was killed at its very end
    return shard_set.manifest


def _refuse_strangers(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; --out names a folder")
    strangers = sorted(folder.glob("*.tar"))
    if strangers and not (folder / WORK).exists():
        raise DataError(
            f"{folder} holds {strangers[0].name} without {FILE_NAME}; use an empty folder for --out"
        )


@contextmanager
def _work_folder(folder: Path) -> Iterator[None]:
    """Holds notes of what is done; it stays when the run is interrupted, and a second run is kept out."""
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another run is writing to {folder}; wait for it to end") from error
        yield
        shutil.rmtree(work)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _check(source: Source, folder: Path, workers: int, progress: Progress) -> list[Checked]:
    task = progress.add_task("checking", total=len(source.samples))
    parts = chunks(source.samples)
    results: dict[int, Checked] = {}
    for index, checked in processes.run(
        partial(check_chunk, folder=folder, check=source.check), parts, workers
    ):
        results[index] = checked
        progress.advance(task, len(parts[index].samples))
    return [results[index] for index in range(len(parts))]


def _good(samples: Sequence[SourceSample], checked: list[Checked]) -> list[tuple[SourceSample, int]]:
    sizes = [size for chunk in checked for size in chunk.bytes]
    return [(sample, size) for sample, size in zip(samples, sizes, strict=True) if size is not None]


def _sorted(problems: set[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.sample, problem.file, problem.cause))


def _settle_problems(source: Source, problems: list[Problem], folder: Path, skip_bad: bool) -> None:
    path = folder / PROBLEMS
    if not problems:
        path.unlink(missing_ok=True)
        return
    data = {
        "format": FORMAT,
        "source": asdict(_origin(source)),
        "left_out": _left_out(problems),
        "problems": [asdict(problem) for problem in problems],
    }
    write_file(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
    if not skip_bad:
        for shard in folder.glob("*.tar"):  # of an interrupted run, when the files were still good
            shard.unlink()
        shutil.rmtree(folder / WORK)
        raise DataError(
            f"{_summary(problems)}; {path} lists them all. Nothing was written: mend them, or leave these "
            f"entries out with --skip-bad"
        )


def _left_out(problems: list[Problem]) -> int:
    return len({problem.sample for problem in problems})


def _summary(problems: list[Problem]) -> str:
    first = "; ".join(f"{problem.file}: {problem.cause}" for problem in problems[:_SHOWN])
    more = " ..." if len(problems) > _SHOWN else ""
    return f"{len(problems)} problems in {_left_out(problems)} entries ({first}{more})"


def _digest(source: Source, checked: list[Checked], max_shard_bytes: int) -> str:
    facts = (asdict(_origin(source)), source.vocabulary.to_json(), max_shard_bytes)
    return hashlib.sha256(repr((facts, [chunk.digest for chunk in checked])).encode()).hexdigest()


def _write(
    source: Source, plans: tuple[ShardPlan, ...], folder: Path, digest: str, workers: int, progress: Progress
) -> list[Shard]:
    task = progress.add_task("writing", total=sum(len(plan.samples) for plan in plans))
    done = finished_shards(plans, folder, digest)
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
    samples: list[SourceSample],
    problems: list[Problem],
    shards: list[Shard],
    max_shard_bytes: int,
) -> Manifest:
    counts = Counts(
        samples=len(samples),
        segments=sum(len(sample.segments) for sample in samples),
        captions=sum(len(sample.captions) for sample in samples),
        left_out=_left_out(problems),
        problems=len(problems),
    )
    name = f"{source.dataset}_{source.split}"
    return Manifest(name, source.vocabulary, counts, tuple(shards), _origin(source), max_shard_bytes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m odise_pl.data.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    coco.add_command(commands)
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, required=True, help="folder of the shard set")
        command.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="processes")
        command.add_argument(
            "--max-shard-mb",
            type=_size,
            default=64,
            help="limit of a shard's size in millions of bytes (default 64); there should be at least as "
            "many shards as devices times loader workers",
        )
        command.add_argument(
            "--skip-bad", action="store_true", help="leave entries with problems out instead of stopping"
        )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _size(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        source = options.read(options)
        limit = round(options.max_shard_mb * _MEGABYTE)
        manifest = prepare(source, options.out, options.workers, limit, options.skip_bad)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    for note in source.notes:
        print(f"note: {note}")
    print(_report(manifest, options.out))
    return 0


def _report(manifest: Manifest, folder: Path) -> str:
    size = sum(shard.bytes for shard in manifest.shards) / _MEGABYTE
    text = (
        f"{folder}: {manifest.counts.samples} samples, shards: {len(manifest.shards)}, {size:.1f} MB, "
        f"vocabulary {manifest.vocabulary.name}"
    )
    if not manifest.counts.left_out:
        return text
    return f"{text}; {manifest.counts.left_out} entries were left out, see {folder / PROBLEMS}"


if __name__ == "__main__":
    sys.exit(main())
