"""Processor time, memory and floating-point operations of every part of a step, against the limit.

    python scripts/profile_step.py                      # the published sizes, random weights, one thread
    python scripts/profile_step.py --model toy          # the small world's model, a batch of 8
    python scripts/profile_step.py --against CHECKOUT   # another version of the package, in turns

The limit of a part is the time that its matrix products and convolutions would take at the rate that this
processor reaches in a large matrix product. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from figures import write_figures
from full_size_step import build, peak_gib, random_targets
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.distributed.sharding import place
from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.models.odise import Odise
from odise_pl.runs.conf import compose_config
from odise_pl.training.optimization import OptimizerSettings, build_optimizer
from odise_pl.vocabulary import load_vocabulary

REST, TEXTS = "everything else", "CLIP texts"
VOCABULARY = "coco_panoptic"


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

    def start(self) -> None:
        """Forget what was measured."""
        self.costs = {}
        _reset_peak()
        self._since = self._now()

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


@dataclass(frozen=True)
class Setting:
    """A network, its losses, and the size of its batches."""

    model: Odise
    criterion: SetCriterion
    optimizer: OptimizerSettings
    batch: int
    size: int
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        """Of the forward pass and the losses."""
        return torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32)


def published(size: int) -> Setting:
    """The published label model with random weights; one image."""
    criterion = SetCriterion(HungarianMatcher(), LossWeights())
    return Setting(build(), criterion, OptimizerSettings(), 1, size)


def toy() -> Setting:
    """The small world's model, with its pre-trained frozen weights."""
    config = compose_config("train", ["experiment=toy", "run_dir=."])
    model = NetworkSettings.of_config(config).build(config.paths)
    criterion, optimizer = instantiate(config.criterion), instantiate(config.optimizer)
    return Setting(model, criterion, optimizer, config.global_batch, config.data.image_size)


def embed(setting: Setting, mode: Mode) -> Any:
    """The embedded classes, which are constant in a run."""
    vocabulary = load_vocabulary(VOCABULARY)
    if mode is Mode.training:
        return setting.model.encode_classes(vocabulary.labels)
    return setting.model.prepare(vocabulary, None)


def evaluate(setting: Setting, meter: Meter, classes: Any) -> None:
    """Predict, and compute all results."""
    model, size = setting.model.eval(), (setting.size, setting.size)
    images = torch.rand(setting.batch, 3, *size)
    model.requires_grad_(False)  # operations of parameters cannot be counted without their gradients
    meter.start()
    with torch.no_grad(), setting.autocast():
        found = model.predict(images, [size] * len(images), [size] * len(images), classes)
        with meter.part("results"):
            for prediction in found:
                _ = prediction.panoptic, prediction.instances, prediction.semantic


def train(setting: Setting, meter: Meter, classes: Any) -> None:
    """Forward, losses, backward and optimiser."""
    model, vocabulary = setting.model.train(), load_vocabulary(VOCABULARY)
    optimizer = build_optimizer(model, setting.optimizer, setting.optimizer.reference_batch)
    targets = [random_targets(setting.size, 6, len(vocabulary)) for _ in range(setting.batch)]
    images = torch.rand(setting.batch, 3, setting.size, setting.size)
    meter.start()
    with setting.autocast():
        outputs = model(images, classes)
    with meter.part("losses"), setting.autocast():
        losses = setting.criterion(outputs, targets, torch.rand, range(setting.batch))
        total = torch.stack([term for loss in losses for term in vars(loss).values()]).sum()
    del outputs
    with meter.part("backward"):
        total.backward()
    with meter.part("optimiser"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), setting.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()


def profile(setting: Setting, mode: Mode, rounds: int, count: bool) -> dict[str, Cost]:
    """The least time of each part in ``rounds`` passes; ``count`` operations in a pass before."""
    step = train if mode is Mode.training else evaluate
    meter = Meter()
    watch_parts(meter, setting.model, setting.criterion.matcher)
    gflop: dict[str, float] = {}
    if count:
        with FlopCounterMode(display=False) as meter.flops:
            for run in (lambda: embed(setting, mode), lambda: step(setting, meter, embed(setting, mode))):
                meter.start()
                run()
                meter.charge()
                gflop |= {name: cost.gflop for name, cost in meter.costs.items()}
        meter.flops = None
    meter.start()
    classes = embed(setting, mode)
    meter.charge()
    best = {TEXTS: meter.costs[TEXTS]}
    for _ in range(rounds):
        step(setting, meter, classes)
        meter.charge()
        for name, cost in meter.costs.items():
            cost.seconds = min(cost.seconds, best.get(name, cost).seconds)
            best[name] = cost
        meter.costs = {}
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
        words = [f"--model {model.value} --size {size} --threads {threads} --rounds {rounds}"]
        words += [f"--against CHECKOUT --turns {turns}"] if against else []
        words += [*(["--bf16"] if bf16 else []), *([f"--mode {mode.value}"] if mode else [])]
        what = f"Parts of a step, {model.value} sizes, {dtype}, threads: {threads}; processor seconds."
        write_figures(file, what, " ".join(["python scripts/profile_step.py", *words]), {"steps": results})


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
    for mode in modes:
        best: dict[Path, Any] = {}
        for root in [root for i in range(turns) for root in ((other, here), (here, other))[i % 2]]:
            environment = os.environ | {"PYTHONPATH": str(root)}
            command = [sys.executable, __file__, "--mode", mode.value, *options]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            parts = json.loads(done.stdout.splitlines()[-1])[mode.value]
            best[root] = min(best.get(root, parts), parts, key=lambda parts: parts["all"]["seconds"])
        before, after = best[other], best[here]
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
