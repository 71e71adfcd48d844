"""Plans held against measurements: training steps on this machine's processor, alone and on two ranks.

``python scripts/bench_plan.py`` prints for several settings what ``python -m odise_pl.plan`` says of them,
and two figures that know nothing of the plan: the bytes that PyTorch's profiler sees the allocator give out,
and the memory that the operating system counts, in which the libraries' own is. Lightning runs the steps, in
processes of their own, with random weights and images as demanding as the plan's. What ranks send is what the
loopback device counts: keep the machine's network quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import psutil
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from odise_pl.autosize import demanding_batch
from odise_pl.parallel import ShardedStrategy
from odise_pl.plan.__main__ import case_of, configuration, module_of
from odise_pl.plan.report import Column, sent
from odise_pl.plan.simulation import Case, StepCost, simulate
from odise_pl.structures import Batch

ROOT = Path(__file__).parents[1]
MIB = 2**20
STEPS = 2  # in the last one, which is measured, gradients and moments are there from the step before
_MEASURED = "the measured step"
SMALL = ["experiment=laptop", "global_batch=4"]
ALL = ("single", "ddp", "fsdp")
SETTINGS: dict[str, tuple[Sequence[str], list[str]]] = {
    "2 images of 512": (ALL, [*SMALL, "batch=2", "data.image_size=512"]),
    "captions, 2 of 256": (ALL, [*SMALL, "model=odise_caption", "batch=2"]),
    "recomputed, 512": (
        ("single", "fsdp"),
        [
            *[*SMALL, "batch=2", "data.image_size=512"],
            *["backbone.checkpoint_activations=true", "backbone.window_batch=1"],
        ],
    ),
    "bfloat16, 512": (("single",), [*SMALL, "batch=2", "data.image_size=512", "precision=bf16-mixed"]),
    "published heads, 512": (
        ("single", "fsdp"),
        ["backbone=tiny", "clip=tiny", "trainer=cpu", "batch=1", "global_batch=2", "data.image_size=512"],
    ),
}


@dataclass(frozen=True)
class Measured:
    """Of one rank in its last step.

    Attributes:
        allocated: bytes that the allocator had given out at most; 0 if it was not watched.
        resident: bytes by which the process had grown at most since it had loaded its libraries.
        sent: bytes that went over the loopback device in the step, of all ranks together.
    """

    allocated: int
    resident: int
    sent: int


class Batches:
    """A loader of the same batch again and again, every time with words that were not seen before."""

    def __init__(self, batch: Batch, number: int) -> None:
        self.batch, self.number = batch, number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.number):
            words = tuple(tuple(f"{word} {step}" for word in some) for some in self.batch.words)
            yield replace(self.batch, words=words)


class LastStep(Callback):
    """Marks the last step for the profiler, the operating system and the network."""

    def __init__(self, accumulate: int) -> None:
        self.first, self.index, self.sent = (STEPS - 1) * accumulate, 0, 0
        self.mark: Any = None

    def on_train_batch_start(self, *_: Any) -> None:
        if self.index == self.first:
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
            self.sent = -_loopback()
            self.mark = record_function(_MEASURED)
            self.mark.__enter__()
        self.index += 1

    def on_train_end(self, *_: Any) -> None:
        self.mark.__exit__(None, None, None)
        self.sent += _loopback()


def _loopback() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def highest() -> int:
    """Most bytes of this process in memory since the mark was cleared."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM: this needs Linux")


def measure(settings: Sequence[str], strategy: str, watched: bool) -> Measured:
    """Train for a few steps in this process, which may be one of several ranks.

    Args:
        settings: see :mod:`odise_pl.plan`.
        strategy: ``single``, ``ddp`` or ``fsdp``.
        watched: by the profiler, which takes memory itself.
    """
    config = configuration(settings, ROOT / "conf")
    case = case_of(config, strategy)
    start = psutil.Process().memory_info().rss
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True) if watched else nullcontext()
    marks = LastStep(case.accumulate)
    with profiler:
        _train(config, case, marks)
    grown = highest() - start
    return Measured(_peak(profiler) if watched else 0, grown, marks.sent)


def _train(config: Any, case: Case, marks: LastStep) -> None:
    module = module_of(config)
    module.model.backbone.window_batch = case.window_batch
    batches = Batches(demanding_batch(module, case.image_size, case.batch), STEPS * case.accumulate)
    strategy = {"single": "auto", "ddp": "ddp"}.get(case.strategy) or ShardedStrategy()
    lightning.Trainer(
        accelerator="cpu",
        devices=case.devices,
        strategy=strategy,
        precision=case.precision,  # type: ignore[arg-type]
        max_steps=STEPS,
        accumulate_grad_batches=case.accumulate,
        logger=False,
        callbacks=[marks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, batches)


def _peak(profiler: Any) -> int:
    """The most that was allocated at once within the mark, by the profiler's own events."""
    events = profiler.profiler.kineto_results.events()
    (mark,) = [event for event in events if event.name() == _MEASURED]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(_within(changes, mark.start_ns(), mark.start_ns() + mark.duration_ns()))


def _within(changes: Sequence[tuple[int, int]], start: int, end: int) -> Iterator[int]:
    held = 0
    for time, change in changes:
        held += change
        if start <= time <= end:
            yield held


def planned(settings: Sequence[str], strategy: str) -> StepCost:
    """What the plan says."""
    config = configuration(settings, ROOT / "conf")
    return simulate(lambda: module_of(config), case_of(config, strategy))


def measured(settings: Sequence[str], strategy: str, watched: bool, limit: float = 600) -> Measured:
    """:func:`measure` in fresh processes: of rank 0."""
    case = case_of(configuration(settings, ROOT / "conf"), strategy)
    with TemporaryDirectory() as folder:
        command = [
            sys.executable,
            __file__,
            "--rank",
            f"{folder}/out.json",
            "--strategy",
            strategy,
            *settings,
        ]
        command += ["--watched"] if watched else []
        started = [
            subprocess.Popen(command, cwd=ROOT, env=_environment(rank, case), stdout=sys.stderr)
            for rank in range(case.ranks)
        ]
        try:
            codes = [process.wait(limit) for process in started]
        finally:
            for process in started:
                process.kill()
        if any(codes):
            raise RuntimeError(f"ranks ended with {codes}")
        return Measured(**json.loads(Path(f"{folder}/out.json").read_text()))


_PORT: list[int] = []


def _environment(rank: int, case: Case) -> dict[str, str]:
    if rank == 0:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            _PORT[:] = [found.getsockname()[1]]
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "LOCAL_WORLD_SIZE": case.ranks}
    several = {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "bench", "MASTER_ADDR": "127.0.0.1"}
    several |= {"MASTER_PORT": str(_PORT[0])} | {key: str(value) for key, value in ranks.items()}
    # what is freed goes back to the system, so that it is counted as long as it is used
    honest = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    return os.environ | honest | {"PYTHONPATH": str(ROOT)} | (several if case.ranks > 1 else {})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="of one plan, instead of several sizes"
    )
    parser.add_argument("--strategy", help="one of single, ddp, fsdp")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        torch.set_num_threads(1)
        found = measure(options.settings, options.strategy, options.watched)
        if os.environ.get("RANK", "0") == "0":
            options.rank.write_text(json.dumps(asdict(found)))
        return
    table = Table(
        *("setting", "strategy", "planned (MiB)", "allocated", "planned is off by"),
        *("resident", "planned is off by", "sent, planned", "sent"),
    )
    own = {" ".join(options.settings): (ALL, options.settings)}
    for name, (strategies, settings) in (own if options.settings else SETTINGS).items():
        for strategy in [options.strategy] if options.strategy else strategies:
            table.add_row(name, strategy, *_row([*settings, "devices=2"], strategy))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _row(settings: Sequence[str], strategy: str) -> list[str]:
    plan, case = planned(settings, strategy), case_of(configuration(settings, ROOT / "conf"), strategy)
    watched, alone = (measured(settings, strategy, flag) for flag in (True, False))
    total = plan.memory.total
    row = [f"{total / MIB:.0f}"]
    for found in (watched.allocated, alone.resident):
        row += [f"{found / MIB:.0f}", f"{(total / found - 1) * 100:+.1f} %"]
    if strategy == "single":
        return [*row, "", ""]
    return [*row, f"{case.ranks * sent(Column(case, plan)) / MIB:.1f}", f"{alone.sent / MIB:.1f}"]


if __name__ == "__main__":
    main()
