"""Samples per second of loading and preparing, on one core and by number of loader workers.

    python -m scripts.bench_data SET --coco ROOT

Processor time and its parts, by the best time of each batch in several passes: over SET in training
(large-scale jitter) and evaluation, and over a split of ROOT, a folder in COCO's layout, in ``odise prepare
coco``. ``--workers 2`` also shows what two loader workers deliver on the clock.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from scripts.figures import write_figures

# Functions of this project and their parts of a sample; what is left is "other".
PARTS = {
    "JPEG": ("decode_rgb", "check_stored"),
    "PNG": ("decode_ids",),
    "resize": ("_resize", "resize_ids"),
    "masks": ("make_targets",),
    "tensors": ("pixel_tensor", "collate"),
}


def main(
    shards: Annotated[str, typer.Argument(metavar="SET", help="folder of a shard set, or its URL")],
    coco: Annotated[Path | None, typer.Option(help="folder in COCO's layout, to time preparing")] = None,
    split: Annotated[str, typer.Option(help="of that folder")] = "train2017",
    size: Annotated[int, typer.Option(help="training crops, and shorter side in evaluation")] = 1024,
    samples: Annotated[int, typer.Option(help="samples of a pass")] = 100,
    rounds: Annotated[int, typer.Option(help="passes")] = 5,
    workers: Annotated[list[int] | None, typer.Option(help="numbers of loader workers to time")] = None,
    file: Annotated[
        Path | None, typer.Option("--json", help="write the figures for the documentation")
    ] = None,
) -> None:
    """Measure and print the tables."""
    torch.set_num_threads(1)
    data = module(shards, size, samples, 0)
    passes: dict[str, Callable[[], Iterator[int]]] = {
        "training": lambda: map(len, data.train_dataloader()),
        "evaluation": lambda: map(len, data.eval_loader("val")),
    }
    if coco:
        passes["preparing"] = lambda: prepare_once(coco, split)
    rows = measure(passes, rounds)
    table = Table("", "samples/s", "ms", *PARTS, "other", title=f"on one core, images of {size}")
    for row in rows:
        shares = (f"{100 * share:.0f} %" for share in row["shares"].values())
        table.add_row(row["name"], f"{row['per_second']:.1f}", f"{row['ms']:.1f}", *shares)
    Console().print(table)
    for number in workers or ():
        many = module(shards, size, samples, number)
        speeds = (clock(loader) for loader in (many.train_dataloader(), many.eval_loader("val")))
        Console().print(f"{number} workers:", *(f"{speed:.1f} samples/s" for speed in speeds))
    if file:
        write_figures(file, f"Processor time of a sample, images of {size}.", {"rows": rows})


def module(shards: str, size: int, samples: int, workers: int) -> PanopticDataModule:
    """The first samples of a set, for training and evaluation."""
    options: dict[str, Any] = {"image_size": size, "eval_short_side": size, "limit_samples": samples}
    return PanopticDataModule(train=shards, val=shards, num_workers=workers, **options)


def prepare_once(coco: Path, split: str) -> Iterator[int]:
    """Prepare a split in one process; yields its number of samples."""
    with tempfile.TemporaryDirectory() as folder:
        yield prepare(read_coco(coco, split), Path(folder)).counts.samples


def measure(passes: dict[str, Callable[[], Iterator[int]]], rounds: int) -> list[dict[str, Any]]:
    """The processor time of each pass, in turns, and the shares of its parts in one more pass."""
    steps = {name: [time_steps(run())] for name, run in passes.items()}
    for _ in range(rounds - 1):
        for name, run in passes.items():
            steps[name].append(time_steps(run()))
    rows = []
    for name, run in passes.items():
        # other programs disturb whole passes, but rarely the same batch each time
        best = sum(min(times) for times in zip(*(times for times, _ in steps[name]), strict=True))
        one = best / steps[name][0][1]
        rows.append({"name": name, "per_second": 1 / one, "ms": 1000 * one, "shares": find_shares(run)})
    return rows


def time_steps(sizes: Iterator[int]) -> tuple[list[float], int]:
    """Processor seconds of each step of a pass, and the number of samples."""
    times, count, started = [], 0, time.process_time()
    for size in sizes:
        count += size
        now = time.process_time()
        times.append(now - started)
        started = now
    return times, count


def find_shares(run: Callable[[], Iterator[int]]) -> dict[str, float]:
    """The share of each part in a pass."""
    with cProfile.Profile() as profile:
        sum(run())
    found = pstats.Stats(profile).get_stats_profile()
    times = {name: one.cumtime for name, one in found.func_profiles.items()}
    parts = {
        part: sum(times.get(name, 0.0) for name in names) / found.total_tt for part, names in PARTS.items()
    }
    return {**parts, "other": 1 - sum(parts.values())}


def clock(loader: Any) -> float:
    """Samples per second on the clock, after the first batch."""
    batches = iter(loader)
    next(batches)
    started = time.perf_counter()
    return sum(map(len, batches)) / (time.perf_counter() - started)


if __name__ == "__main__":
    typer.run(main)
