"""Pack a source into a shard set: check all samples, then write. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from odise_pl.data.manifest import (
    FILE_NAME,
    FORMAT,
    Counts,
    Manifest,
    Origin,
    Shard,
    find_missing_shards,
    open_shard_set,
)
from odise_pl.data.prepare.processes import run
from odise_pl.data.prepare.shards import (
    Packed,
    ShardPlan,
    group_by_size,
    output_folder,
    sample_bytes,
    write_manifest,
    write_shards,
)
from odise_pl.data.prepare.source import Members, Problem, Source, SourceSample
from odise_pl.data.records import DataError, prefix_errors
from odise_pl.files import write_bytes

PROBLEMS = "problems.json"
_SHOWN = 3
_CHUNK = 16  # samples that a process checks at a time


def prepare(
    source: Source,
    folder: Path,
    workers: int = 1,
    max_shard_bytes: int = 64_000_000,
    skip_bad: bool = False,
) -> Manifest:
    """Check every sample of a source and write the shard set; an interrupted run can be resumed.

    Args:
        source: the data set.
        folder: of the shard set; created if missing.
        workers: number of processes.
        max_shard_bytes: limit of a shard's size.
        skip_bad: skip entries with problems instead of stopping.

    Raises:
        DataError: there are problems (``problems.json`` lists them), or the folder has other files.
    """
    if (folder / FILE_NAME).exists():
        expected = (source.origin, source.vocabulary, max_shard_bytes)
        return read_finished(folder, lambda m: (m.source, m.vocabulary, m.max_shard_bytes) == expected)
    with output_folder(folder):
        checked = _check(source, workers)
        found = (problem for one in checked for problem in one.problems)
        problems = _report_problems(source.origin, [*source.problems, *found], folder, skip_bad)
        good = [pair for pair in zip(source.samples, checked, strict=True) if not pair[1].problems]
        if not good:
            raise DataError(
                f"{source.origin.annotations} of {source.origin.split}: has no usable sample; "
                f"see {folder / PROBLEMS}"
            )
        fingerprint = (asdict(source.origin), source.vocabulary.to_json(), max_shard_bytes)
        digests = [facts.digest for _, facts in good]
        plans = _plans(source, good, max_shard_bytes)
        shards = write_shards(plans, folder, (*fingerprint, digests), workers)
        return write_manifest(_manifest(source, good, problems, shards, max_shard_bytes), folder)


def read_finished(folder: Path, matches: Callable[[Manifest], bool]) -> Manifest:
    """The manifest of a finished set.

    Raises:
        DataError: it is another set, or shards are missing or damaged.
    """
    shard_set = open_shard_set(folder)
    if not matches(shard_set.manifest):
        raise DataError(
            f"{folder} already holds the shard set '{shard_set.manifest.name}', made from another source or "
            f"with other options; delete the folder or use another --out"
        )
    if missing := find_missing_shards(shard_set):
        raise DataError(
            f"{missing[0]}: is missing or damaged ({len(missing)} such shards); delete {folder} and prepare "
            f"the set again"
        )
    return shard_set.manifest


@dataclass(frozen=True)
class _Checked:
    """Result of checking a sample; ``digest`` is the SHA-256 of its members."""

    problems: Sequence[Problem]
    bytes: int = 0
    segments: int = 0
    digest: str = ""


_Good = Sequence[tuple[SourceSample, _Checked]]


def _check(source: Source, workers: int) -> list[_Checked]:
    function = partial(_check_sample, check=source.check, pack=source.pack)
    return run(function, source.samples, workers, "checking samples", _CHUNK)


def _check_sample(
    sample: SourceSample,
    check: Callable[[SourceSample], list[Problem]],
    pack: Callable[[SourceSample], tuple[Members, int]],
) -> _Checked:
    if problems := check(sample):
        return _Checked(problems)
    members, segments = pack(sample)
    digest = hashlib.sha256(sample.key.encode())
    for suffix, content in members.items():
        digest.update(suffix.encode() + content)
    return _Checked((), sample_bytes(members), segments, digest.hexdigest())


def _plans(source: Source, good: _Good, max_shard_bytes: int) -> list[ShardPlan]:
    prefix = re.sub(r"[^\w.-]+", "_", source.origin.split).lstrip(".-") or "shard"
    groups = group_by_size(
        [sample for sample, _ in good], [facts.bytes for _, facts in good], max_shard_bytes
    )
    return [
        ShardPlan(f"{prefix}-{i:06d}.tar", len(samples), partial(_read, samples, source.pack))
        for i, samples in enumerate(groups)
    ]


def _read(
    samples: Sequence[SourceSample], pack: Callable[[SourceSample], tuple[Members, int]]
) -> Iterator[Packed]:
    for sample in samples:
        with prefix_errors(f"{sample.name}: a file could be read before, but"):
            yield sample.key, pack(sample)[0]


def _report_problems(
    origin: Origin, found: Sequence[Problem], folder: Path, skip_bad: bool
) -> Sequence[Problem]:
    """Write the distinct problems, sorted, to ``problems.json`` and return them.

    Raises:
        DataError: there are problems and ``skip_bad`` is not set.
    """
    path, problems = folder / PROBLEMS, sorted(set(found))
    if not problems:
        path.unlink(missing_ok=True)
        return problems
    entries = _count_entries(problems)
    data = {
        "format": FORMAT,
        "source": asdict(origin),
        "left_out": entries,
        "problems": [asdict(problem) for problem in problems],
    }
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))
    if not skip_bad:
        first = "; ".join(f"{problem.file}: {problem.cause}" for problem in problems[:_SHOWN])
        raise DataError(
            f"{len(problems)} problems, entries with problems: {entries} ({first}); {path} lists all. "
            f"No shard was written: fix them, or skip these entries with --skip-bad"
        )
    return problems


def _count_entries(problems: Sequence[Problem]) -> int:
    return len({problem.sample for problem in problems})


def _manifest(
    source: Source, good: _Good, problems: Sequence[Problem], shards: tuple[Shard, ...], max_shard_bytes: int
) -> Manifest:
    counts = Counts(
        samples=len(good),
        segments=sum(facts.segments for _, facts in good),
        captions=sum(len(sample.captions) for sample, _ in good),
        left_out=_count_entries(problems),
        problems=len(problems),
    )
    name = f"{source.origin.dataset}_{source.origin.split}"
    return Manifest(name, source.vocabulary, counts, shards, source.origin, max_shard_bytes, source.measures)
