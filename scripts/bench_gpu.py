"""Time, memory and share of a GPU's peak of the published label model, with random weights.

``python -m scripts.bench_gpu --json docs/figures/gpu.json`` evaluates and trains in full precision, bfloat16,
channels-last and compiled, in at most eight minutes; it needs no weights and no data. What does not fit into
memory or time is listed as such. ``--tiny`` does the same on any machine with the small world's model.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from odise_pl.distributed.sharding import place
from odise_pl.models.odise import Odise
from scripts.figures import write_figures
from scripts.steps import Evaluation, Setting, TrainingStep, peak_gib, published, toy

# Dense TFLOP/s in bfloat16 with sums in float32, from the data sheets; the first name that fits. TF32, in
# which cuDNN convolves float32 by default, has half of it on all of them.
PEAKS = {"H100 PCIe": 756, "H100 80GB": 989, "H200": 989, "A100": 312, "RTX 4090": 165, "L4": 121}
# Each changes the network of the one before.
MODES = ("fp32", "bf16", "bf16 channels_last", "bf16 channels_last compile")


@dataclass(frozen=True)
class Work:
    """What is timed: training (of square images) or evaluation, at a size in pixels."""

    kind: str
    height: int
    width: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.kind} {self.height}x{self.width} batch {self.batch}"

    def prepare(self, network: Setting, dtype: torch.dtype) -> Callable[[], object]:
        """A function that does it once."""
        step = TrainingStep if self.kind == "training" else Evaluation
        return step(replace(network, height=self.height, width=self.width, batch=self.batch, dtype=dtype))


def works(side: int, wide: int) -> list[Work]:
    """All that is timed; ``side`` and ``wide`` in pixels."""
    training = [Work("training", side, side, batch) for batch in (1, 2, 4)]
    return [Work("evaluation", side, side), Work("evaluation", side, wide), *training]


def apply(mode: str, model: Odise) -> None:
    """Change the network of the previous mode in place."""
    features = model.backbone.features
    if mode == "bf16":
        place(model, torch.bfloat16)  # keeps frozen weights rounded, as training does
    elif mode.endswith("channels_last"):
        features.to(memory_format=torch.channels_last)
    elif mode.endswith("compile"):
        features.compile()


def measure(
    work: Work, mode: str, network: Setting, flops: dict[Work, int], repetitions: int = 10, seconds: float = 4
) -> dict[str, Any]:
    """Median time after a warm-up, peak memory, and floating-point operations, counted in the first mode."""
    run = work.prepare(network, torch.float32 if mode == "fp32" else torch.bfloat16)
    if work not in flops:
        with FlopCounterMode(display=False) as counter:
            run()
        flops[work] = counter.get_total_flops()
    run()  # compiles, and cuDNN chooses
    run()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    taken: list[float] = []
    while not taken or (len(taken) < repetitions and sum(taken) < seconds):
        wait_for_device()
        start = time.perf_counter()
        run()
        wait_for_device()
        taken.append(time.perf_counter() - start)
    return {
        "seconds": (median := statistics.median(taken)),
        "images_per_second": work.batch / median,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else peak_gib(),
        "tflop": flops[work] / 1e12,
    }


def wait_for_device() -> None:
    """Wait until the GPU, if there is one, has done what was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after ``seconds``, or at once if there are none."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def bench(network: Setting, plan: list[Work], ends: float, peak: float | None) -> Iterator[dict[str, Any]]:
    """One row per mode and work.

    Args:
        network: changed in place.
        plan: what is timed in each mode.
        ends: by ``time.monotonic``.
        peak: of the device in bfloat16, TFLOP/s; None: unknown.
    """
    flops: dict[Work, int] = {}
    model = network.model
    trained = [p for p in model.parameters() if p.requires_grad]
    for mode in MODES:
        apply(mode, model)
        for work in plan:
            row: dict[str, Any] = {"name": f"{work}, {mode}", "outcome": "measured"}
            start = time.monotonic()
            # operations cannot be counted under no_grad if parameters need gradients
            for parameter in trained:
                parameter.requires_grad_(work.kind == "training")
            try:
                with deadline(ends - start):
                    row |= measure(work, mode, network, flops)
            except TimeoutError:
                row["outcome"] = "skipped: time is up"
            except torch.OutOfMemoryError:
                row["outcome"] = "out of memory"
            except RuntimeError as error:  # of the compiler
                late = time.monotonic() >= ends  # which wraps the TimeoutError
                row["outcome"] = "skipped: time is up" if late else f"failed: {str(error).splitlines()[0]}"
            if peak and "seconds" in row:
                reachable = peak / 2 if mode == "fp32" else peak
                row["share_of_peak"] = row["tflop"] / row["seconds"] / reachable
            model.zero_grad()
            torch.cuda.empty_cache()  # does nothing without a GPU
            yield row | {"whole_s": time.monotonic() - start}


def main() -> None:
    """Print a line per row."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="the small world's model, for a trial")
    parser.add_argument("--budget", type=float, default=470, help="seconds in all")
    parser.add_argument("--peak-tflops", type=float, help="of this device in bfloat16, dense")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures for the documentation")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "processor"
    peak = options.peak_tflops or next(
        (tflops for card, tflops in PEAKS.items() if f" {card} " in f" {name} "), None
    )
    torch.manual_seed(0)
    network = toy() if options.tiny else published(1024)
    network.model.to(device)
    plan = works(128, 192) if options.tiny else works(1024, 1344)
    rows = []
    for row in bench(network, plan, start + options.budget, peak):
        numbers = [f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float)]
        print(f"{row['name']}: {row['outcome']}", *numbers, sep=", ", flush=True)
        rows.append(row)
    if options.json:
        what = f"Published label model, random weights, {name}." if not options.tiny else "A trial."
        about = {"device": name, "torch": torch.__version__, "peak_bf16_tflops": peak, "rows": rows}
        write_figures(options.json, what, about)


if __name__ == "__main__":
    main()
