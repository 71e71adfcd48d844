"""Processor time, memory and floating-point operations of every part of a step, against the limit.

    python -m scripts.profile_step                      # the published sizes, random weights, one thread
    python -m scripts.profile_step --model toy          # the small world's model, a batch of 8
    python -m scripts.profile_step --against CHECKOUT   # another version of the package, in turns

The limit of a part is the time that its matrix products and convolutions would take at the rate that this
processor reaches in a large matrix product. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from odise_pl.distributed.sharding import place
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.models.odise import Odise
from scripts.figures import write_figures
from scripts.steps import Evaluation, Setting, TrainingStep, peak_gib, published, toy

REST, TEXTS = "everything else", "CLIP texts"
_Result = TypeVar("_Result")


class Kind(StrEnum):
    """What is profiled."""

    full = "full"
    toy = "toy"


class Mode(StrEnum):
    """Which step."""

    evaluation = "evaluation"
    training = "training"


@dataclass
class Cost:
    """Cost of a part without the parts inside it: processor seconds, GFLOP, and peak memory in GiB."""

    seconds: float = 0.0
    gflop: float = 0.0
    peak_gib: float = 0.0


@dataclass
class Meter:
    """Charges processor time and operations to the innermost part that runs."""

    costs: dict[str, Cost] = field(default_factory=dict)
    flops: FlopCounterMode | None = None
    _open: list[str] = field(default_factory=lambda: [REST])
    _since: tuple[float, float] = (0.0, 0.0)

    def _now(self) -> tuple[float, float]:
        return time.process_time(), self.flops.get_total_flops() / 1e9 if self.flops else 0.0

    def measure(self, run: Callable[[], _Result]) -> tuple[_Result, dict[str, Cost]]:
        """The result of one run, and the costs of its parts."""
        self.costs = {}
        _reset_peak()
        self._since = self._now()
        result = run()
        self.charge()
        return result, self.costs

    def charge(self) -> None:
        """Charge what happened since the last call to the innermost open part."""
        cost, now = self.costs.setdefault(self._open[-1], Cost()), self._now()
        cost.seconds += now[0] - self._since[0]
        cost.gflop += now[1] - self._since[1]
        cost.peak_gib = max(cost.peak_gib, peak_gib())
        _reset_peak()
        self._since = self._now()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Everything inside belongs to ``name``."""
        self.charge()
        self._open.append(name)
        try:
            yield
        finally:
            self.charge()
            self._open.pop()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Charge every call of ``owner.method`` to ``name``."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return inner(*args, **kwargs)

        object.__setattr__(owner, method, timed)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def watch_parts(meter: Meter, model: Odise, matcher: HungarianMatcher) -> None:
    """Name the parts of the network."""
    features, clip = model.backbone.features, model.clip
    for owner, method, name in (
        (features, "encode", "VAE encoder"),
        (features, "unet_features", "UNet"),
        (features, "decoder_features", "VAE decoder"),
        (clip, "encode_image", "CLIP of the captioner"),
        (clip, "encode_masks", "masked CLIP"),
        (clip, "encode_text", TEXTS),
        (model.backbone.pyramid, "forward", "projections"),
        (model.pixel_decoder, "forward", "pixel decoder"),
        (model.mask_decoder, "forward", "mask decoder"),
        (matcher, "_match", "matching"),
        (matcher, "costs", "matching"),
    ):
        meter.watch(owner, method, name)


def profile(setting: Setting, mode: Mode, rounds: int, count: bool) -> dict[str, Cost]:
    """The least time of each part in ``rounds`` passes; ``count`` operations in a pass before."""
    meter = Meter()
    watch_parts(meter, setting.model, setting.criterion.matcher)
    if mode is Mode.evaluation:  # operations of parameters cannot be counted without their gradients
        setting.model.requires_grad_(False)
    kind: Callable[..., Callable[[], object]] = TrainingStep if mode is Mode.training else Evaluation
    make = partial(kind, setting, meter.part)
    gflop: dict[str, float] = {}
    if count:
        with FlopCounterMode(display=False) as meter.flops:
            step, before = meter.measure(make)
            _, costs = meter.measure(step)
        gflop = {name: cost.gflop for name, cost in (before | costs).items()}
        meter.flops = None
    step, before = meter.measure(make)
    best = {TEXTS: before[TEXTS]}  # embedded once in a run
    for _ in range(rounds):
        for name, cost in meter.measure(step)[1].items():
            cost.seconds = min(cost.seconds, best.get(name, cost).seconds)
            best[name] = cost
    return {name: replace(cost, gflop=gflop.get(name, 0.0)) for name, cost in best.items()}


def matrix_gflops(dtype: torch.dtype, size: int = 3072) -> float:
    """GFLOP per processor second of a large matrix product."""
    a, b, seconds = torch.rand(size, size, dtype=dtype), torch.rand(size, size, dtype=dtype), []
    for _ in range(4):
        start = time.process_time()
        _ = a @ b
        seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds) / 1e9


def main(
    model: Annotated[Kind, typer.Option(help="published sizes, or the small world")] = Kind.full,
    mode: Annotated[Mode | None, typer.Option(help="default: both")] = None,
    size: Annotated[int, typer.Option(help="side of the image in pixels; not of the toy")] = 512,
    threads: Annotated[int, typer.Option(help="threads of torch")] = 1,
    rounds: Annotated[int, typer.Option(help="measured passes; the fastest counts")] = 1,
    bf16: Annotated[bool, typer.Option("--bf16", help="frozen weights and autocast in bfloat16")] = False,
    against: Annotated[Path | None, typer.Option(help="checkout of another version")] = None,
    turns: Annotated[int, typer.Option(help="with --against: fresh processes of each version")] = 2,
    file: Annotated[Path | None, typer.Option("--json", help="write the figures")] = None,
    bare: Annotated[bool, typer.Option(help="print JSON", hidden=True)] = False,
) -> None:
    """Profile, or compare two versions."""
    modes = [mode] if mode else list(Mode)
    dtype = torch.bfloat16 if bf16 else torch.float32
    if against:
        options = ["--model", model.value, "--size", str(size), "--threads", str(threads)]
        options += ["--rounds", str(rounds), "--bare", *(["--bf16"] if bf16 else [])]
        results = compare(against.resolve(), modes, turns, options)
    else:
        torch.set_num_threads(threads)
        results = {one.value: measure(model, one, size, rounds, dtype, not bare) for one in modes}
    if bare:
        print(json.dumps(results))
        return
    for name, parts in results.items():
        show(f"{name}, {model.value}, {dtype}, {threads} thread(s)", parts)
    if file:
        what = f"Parts of a step, {model.value} sizes, {dtype}, threads: {threads}; processor seconds."
        write_figures(file, what, {"steps": results})


def measure(
    kind: Kind, mode: Mode, size: int, rounds: int, dtype: torch.dtype, count: bool
) -> dict[str, dict[str, float]]:
    """The costs of all parts and of the whole without the texts, with the limit of each."""
    torch.manual_seed(0)
    setting = replace(published(size) if kind is Kind.full else toy(), dtype=dtype)
    place(setting.model, dtype)
    costs = profile(setting, mode, rounds, count)
    rate = matrix_gflops(dtype)
    step = [cost for name, cost in costs.items() if name != TEXTS]
    costs["all"] = Cost(
        sum(c.seconds for c in step), sum(c.gflop for c in step), max(c.peak_gib for c in step)
    )
    return {name: asdict(cost) | {"limit_s": cost.gflop / rate} for name, cost in costs.items()}


def compare(
    other: Path, modes: list[Mode], turns: int, options: list[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Both versions in turns, each in fresh processes: the fastest run of each."""
    here = Path(__file__).resolve().parents[1]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)  # the other version with these scripts
        for path in [*(path for path in other.iterdir() if path.name != "scripts"), here / "scripts"]:
            (there / path.name).symlink_to(path)
        for mode in modes:
            best: dict[Path, Any] = {}
            for root in [root for i in range(turns) for root in ((there, here), (here, there))[i % 2]]:
                command = [sys.executable, "-m", "scripts.profile_step", "--mode", mode.value, *options]
                done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE)
                parts = json.loads(done.stdout.splitlines()[-1])[mode.value]
                best[root] = min(best.get(root, parts), parts, key=lambda parts: parts["all"]["seconds"])
            before, after = best[there], best[here]
            found[mode.value] = {
                name: after.get(name, asdict(Cost()) | {"limit_s": 0.0})
                | {f"before_{key}": before.get(name, asdict(Cost()))[key] for key in ("seconds", "peak_gib")}
                for name in before | after
            }
    return found


def show(title: str, parts: dict[str, dict[str, float]]) -> None:
    """Print one step, the most expensive part first."""
    compared = any("before_seconds" in cost for cost in parts.values())
    columns = ["seconds", "peak (GiB)", *([] if compared else ["limit (s)", "GFLOP"])]
    table = Table("part", *(["before (s)", "before (GiB)"] if compared else []), *columns, title=title)
    for name, cost in sorted(parts.items(), key=lambda item: (item[0] == "all", -item[1]["seconds"])):
        before = [f"{cost['before_seconds']:.2f}", f"{cost['before_peak_gib']:.2f}"] if compared else []
        values = [cost["seconds"], cost["peak_gib"]]
        values += [] if compared else [cost["limit_s"], cost["gflop"]]
        table.add_row(name, *before, *(f"{value:.2f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
