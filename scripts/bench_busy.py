"""A training step of the small world beside another busy program: ``python -m scripts.bench_busy``.

Wall-clock seconds of a step of eight images on all cores, by how OpenMP's threads wait for each other:
spinning, its default, or sleeping, which the programs of this project set. The median of each run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from scripts.figures import write_figures
from scripts.steps import TrainingStep, toy

POLICIES: dict[str, dict[str, str]] = {"spinning": {}, "sleeping": {"OMP_WAIT_POLICY": "passive"}}


def take_steps(count: int) -> list[float]:
    """Seconds of each step, after a warm-up and a line on standard input."""
    step = TrainingStep(toy())
    step()
    print("ready", flush=True)
    sys.stdin.readline()
    starts = [time.perf_counter()]
    for _ in range(count):
        step()
        starts.append(time.perf_counter())
    return [end - start for start, end in pairwise(starts)]


def measure(policy: str, busy: bool, count: int) -> float:
    """The median of ``count`` steps in a new process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    child = [sys.executable, "-m", "scripts.bench_busy", "--child", "--steps", str(count)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        child, env=environment | POLICIES[policy], stdin=pipe, stdout=pipe, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        if program.stdout.readline() != "ready\n":
            raise SystemExit("the training step failed")
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            seconds, _ = program.communicate("\n")
        finally:
            if other is not None:
                other.kill()
                other.wait()
    return statistics.median(json.loads(seconds))


def main() -> None:
    """Print a line per policy and machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the least counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures for the documentation")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(take_steps(options.steps)))
        return
    cases = [(policy, busy) for policy in POLICIES for busy in (False, True)]
    taken: dict[tuple[str, bool], list[float]] = {case: [] for case in cases}
    for _ in range(options.repeat):
        for case in cases:
            taken[case].append(measure(*case, options.steps))
    rows = []
    for (policy, busy), seconds in taken.items():
        name = f"{policy} {'busy' if busy else 'quiet'}"
        print(f"{name}: {min(seconds):.2f} s a step, runs {[round(s, 2) for s in seconds]}")
        rows.append({"name": name, "seconds": min(seconds)})
    if options.json:
        what = "Training step of the small world's model, eight images, all cores."
        write_figures(options.json, what, {"rows": rows})


if __name__ == "__main__":
    main()
