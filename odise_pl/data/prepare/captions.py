"""Captions of images by BLIP, written into shards: ``python -m odise_pl.data.prepare captions --help``.

Everything is checked before the model runs, and what a run has captioned is noted, so that an interrupted run
goes on. The images that the model reads at once follow from the shards alone, and on the processor it
computes with one thread: the result is the same whatever the number of processes. Imports no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from odise_pl.data.manifest import FILE_NAME, Captioning, Manifest, Shard, ShardSet, check_shards
from odise_pl.data.prepare import processes
from odise_pl.data.prepare.packing import (
    left_out,
    progress_bars,
    refuse_strangers,
    settle_problems,
    sort_problems,
    whole,
    work_folder,
)
from odise_pl.data.prepare.shards import WORK, finished_shards, write_file
from odise_pl.data.records import DataError

if TYPE_CHECKING:
    from odise_pl.data.prepare.captioning import CaptionSource, CheckedShard

_WEIGHTS = Path("weights/blip-image-captioning-base")
_FETCH = f"hf download Salesforce/{_WEIGHTS.name} --local-dir {_WEIGHTS}"
_PER_GPU = 4  # processes that keep one busy: the images have to be decoded too


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add ``captions`` to the prepare command."""
    parser = commands.add_parser(
        "captions", help="a copy of a shard set with a caption by BLIP in each sample"
    )
    parser.add_argument("--shards", required=True, help="folder or URL of the shard set to caption")
    parser.add_argument(
        "--weights", default=str(_WEIGHTS), help=f"folder of BLIP, or a hub id (default {_WEIGHTS})"
    )
    parser.add_argument("--max-tokens", type=int, default=20, help="limit of a caption's length (default 20)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.set_defaults(prepare=_run)


def _run(options: argparse.Namespace) -> Manifest:
    shard_set = check_shards(options.shards)
    if Path(options.weights) == _WEIGHTS and not _WEIGHTS.exists():
        raise DataError(f"--weights {_WEIGHTS} is not there; get it with: {_FETCH}")
    from odise_pl.data.prepare.captioning import CaptionModel, devices

    found = devices(options.device)
    model = CaptionModel(options.weights, options.max_tokens, found)
    cores = os.cpu_count() or 1
    most = cores if found == ("cpu",) else min(cores, _PER_GPU * len(found))
    return prepare_captions(shard_set, options.out, model, options.workers or most, options.skip_bad)


def prepare_captions(
    shard_set: ShardSet, folder: Path, model: CaptionSource, workers: int, skip_bad: bool
) -> Manifest:
    """Write a copy of a shard set in which every record has a ``generated_caption``.

    Shards keep their names and the order of their samples.

    Args:
        shard_set: what is captioned; it stays as it is.
        folder: the new shard set.
        model: makes the captions.
        workers: processes.
        skip_bad: leave samples with problems out instead of stopping.

    Raises:
        DataError: there are problems (``problems.json`` lists them), or the folder holds something else.
        UserError: the model cannot be loaded.
    """
    captioning = Captioning(model.name, model.digest(), model.max_tokens, _digest(shard_set))
    if (folder / FILE_NAME).exists():
        return _finished_before(shard_set, captioning, folder)
    refuse_strangers(folder)
    with work_folder(folder), progress_bars() as progress, processes.Workers(workers) as pool:
        _same_run(captioning, folder)
        checked = _check(shard_set, folder, pool, progress)
        problems = sort_problems({problem for shard in checked for problem in shard.problems})
        began = any((folder / WORK).glob("captions-*"))  # hours of work, not to be undone
        settle_problems(shard_set.manifest.source, problems, folder, skip_bad, undo=not began)
        if not any(shard.good for shard in checked):
            raise DataError(f"{shard_set.location}: no sample is left to caption")
        captions = _caption(shard_set, checked, folder, model, pool, progress)
        shards = _write(shard_set, checked, captions, folder, pool, progress)
        counts = replace(
            shard_set.manifest.counts,
            samples=sum(shard.samples for shard in shards),
            segments=sum(shard.segments for shard in checked),
            captions=sum(shard.captions for shard in checked),
            left_out=shard_set.manifest.counts.left_out + left_out(problems),
            problems=shard_set.manifest.counts.problems + len(problems),
        )
        manifest = replace(shard_set.manifest, counts=counts, shards=tuple(shards), captioning=captioning)
        write_file(folder / FILE_NAME, manifest.to_bytes())
    return manifest


def _digest(shard_set: ShardSet) -> str:
    sums = "".join(shard.sha256 for shard in shard_set.manifest.shards)
    return hashlib.sha256(sums.encode()).hexdigest()


def _finished_before(shard_set: ShardSet, captioning: Captioning, folder: Path) -> Manifest:
    there = check_shards(folder)
    if there.manifest.captioning != captioning or there.manifest.source != shard_set.manifest.source:
        raise DataError(
            f"{folder} already holds the shard set '{there.manifest.name}', which is not this one with "
            f"captions by {captioning.model}; delete the folder, or use another --out"
        )
    return whole(there, folder)


def _same_run(captioning: Captioning, folder: Path) -> None:
    """Note what is being made, and refuse to go on with the notes of something else."""
    note, content = folder / WORK / "captioning.json", json.dumps(asdict(captioning)).encode()
    if note.exists() and note.read_bytes() != content:
        raise DataError(
            f"{folder} holds captions of an interrupted run with another model, other options or other "
            f"shards; repeat that run's command, delete the folder, or use another --out"
        )
    write_file(note, content)


def _check(
    shard_set: ShardSet, folder: Path, pool: processes.Workers, progress: Progress
) -> list[CheckedShard]:
    from odise_pl.data.prepare.captioning import check_shard

    pairs = list(zip(shard_set.urls, shard_set.manifest.shards, strict=True))
    task = progress.add_task("checking", total=sum(shard_set.sizes))
    function = partial(check_shard, folder=folder)
    return _collect(function, pairs, pool, lambda i: progress.advance(task, shard_set.sizes[i]))


def _caption(
    shard_set: ShardSet,
    checked: Sequence[CheckedShard],
    folder: Path,
    model: CaptionSource,
    pool: processes.Workers,
    progress: Progress,
) -> list[list[str]]:
    """Captions of the good samples of each shard."""
    from odise_pl.data.prepare.captioning import caption_chunk, chunks

    parts = chunks(shard_set.urls, checked)
    task = progress.add_task("captioning", total=sum(len(part.places) for part in parts))
    function = partial(caption_chunk, folder=folder, model=model)
    made = _collect(function, parts, pool, lambda i: progress.advance(task, len(parts[i].places)))
    captions: list[list[str]] = [[] for _ in checked]
    for part, some in zip(parts, made, strict=True):
        captions[part.shard] += some
    return captions


def _write(
    shard_set: ShardSet,
    checked: Sequence[CheckedShard],
    captions: Sequence[list[str]],
    folder: Path,
    pool: processes.Workers,
    progress: Progress,
) -> list[Shard]:
    from odise_pl.data.prepare.captioning import CaptionedShard, write_captioned

    plans = [
        CaptionedShard(shard.name, url, check.state, check.good, tuple(some))
        for shard, url, check, some in zip(
            shard_set.manifest.shards, shard_set.urls, checked, captions, strict=True
        )
        if check.good
    ]
    digest = hashlib.sha256(repr([asdict(plan) for plan in plans]).encode()).hexdigest()
    done = finished_shards([plan.name for plan in plans], folder, digest)
    task = progress.add_task("writing", total=sum(len(plan.good) for plan in plans))
    progress.advance(task, sum(shard.samples for shard in done.values()))
    rest = [plan for plan in plans if plan.name not in done]
    function = partial(write_captioned, folder=folder, digest=digest)
    for shard in _collect(function, rest, pool, lambda i: progress.advance(task, len(rest[i].good))):
        done[shard.name] = shard
    return [done[plan.name] for plan in plans]


def _collect(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    pool: processes.Workers,
    advance: Callable[[int], None],
) -> list[Any]:
    """Results in the order of the tasks, with a word when each is done."""
    results: dict[int, Any] = {}
    for index, result in pool.run(function, tasks):
        results[index] = result
        advance(index)
    return [results[index] for index in range(len(tasks))]
