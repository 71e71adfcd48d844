"""Samples per second of a shard set, by number of loader workers: ``python scripts/bench_data.py SET``."""

from __future__ import annotations

import argparse
import time

from rich.console import Console
from rich.table import Table

from odise_pl.data.datamodule import AUGMENTATIONS, PanopticDataModule


def main() -> None:
    """Print a table of throughput in training and evaluation."""
    options = _parser().parse_args()
    table = Table(
        "workers", "training: first batch (s)", "samples/s", "evaluation: first batch (s)", "samples/s"
    )
    for workers in options.workers:
        data = PanopticDataModule(
            train=options.set,
            val=options.set,
            batch_size=options.batch_size,
            num_workers=workers,
            image_size=options.image_size,
            eval_short_side=options.image_size,
            augment=options.augment,
            epoch_length=options.samples,
        )
        measured = (
            *_measure(data.train_dataloader(), options.samples),
            *_measure(data.val_dataloader(), options.samples),
        )
        table.add_row(str(workers), *(f"{value:.2f}" for value in measured))
    Console().print(table)


def _measure(loader: object, samples: int) -> tuple[float, float]:
    """Seconds until the first batch, and samples per second after it."""
    start = time.perf_counter()
    batches = iter(loader)  # type: ignore[call-overload]
    next(batches)
    first = time.perf_counter()
    count = 0
    for batch in batches:
        count += len(batch)
        if count >= samples:
            break
    return first - start, count / (time.perf_counter() - first)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", help="folder of a shard set, or URL of its dataset.json")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 1, 2, 4], help="numbers of workers to try"
    )
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="lsj")
    parser.add_argument("--samples", type=int, default=200, help="samples per measurement")
    return parser


if __name__ == "__main__":
    main()
