"""Processor time of starting each program: ``python -m scripts.bench_startup [--against CHECKOUT]``.

Fresh processes on one thread, with bytecode, in turn of each checkout; the least of several counts.
``--demo`` names a folder in which ``odise demo`` has run, and adds the programs that need its results.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.figures import write_figures

ROOT = Path(__file__).parents[1]
IMPORTS = (
    "import torch",
    "import odise_pl",
    "from odise_pl import load_vocabulary",
    "from odise_pl import Segmenter",
)


def programs(demo: Path | None, out: Path) -> dict[str, list[str]]:
    """What follows ``python``, by name; results are written into ``out``."""
    found = {code: ["-c", code] for code in IMPORTS} | {"odise --help": ["-m", "odise_pl", "--help"]}
    if demo is not None:
        picture, words = str(ROOT / "docs" / "images" / "example.png"), "rocket,bird,tree,sky:stuff"
        predict = ["predict", str(demo / "runs" / "demo"), picture, "--words", words, "--out", str(out)]
        one_step = ["trainer.max_steps=1", "data.limit_samples=8", "~data.val.toy_open"]
        shards = f"paths.shards={demo / 'data' / 'shards'}"
        train = ["train.py", "experiment=toy", f"run_dir={out}/run", shards, *one_step]
        found |= {"odise predict": ["-m", "odise_pl", *predict], "train.py, one step": train}
    return found


def processor_seconds(arguments: list[str], checkout: Path, cache: Path) -> float:
    """Of ``python ARGUMENTS`` in a checkout, with all processes that it starts."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(cache)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python = [sys.executable, *arguments]
    subprocess.run(python, cwd=checkout, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line per program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="folder of the demo")
    parser.add_argument("--repeat", type=int, default=3, help="after a first time, which writes bytecode")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures for the documentation")
    options = parser.parse_args()
    demo = options.demo and options.demo.resolve()
    checkouts = {"before": options.against.resolve()} if options.against else {}
    checkouts["after"] = ROOT
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in programs(demo, Path()):
            taken: dict[str, list[float]] = {which: [] for which in checkouts}
            for i in range(1 + options.repeat):
                for which, checkout in checkouts.items():
                    arguments = programs(demo, Path(folder, f"{which}{i}"))[name]
                    taken[which].append(processor_seconds(arguments, checkout, Path(folder, "bytecode")))
            rows.append({"name": name} | {which: min(times[1:]) for which, times in taken.items()})
            print(*(f"{k} {v:.2f}" if isinstance(v, float) else v for k, v in rows[-1].items()), flush=True)
    if options.json:
        what = "Processor seconds of a fresh process on one thread, with bytecode."
        write_figures(options.json, what, {"rows": rows})


if __name__ == "__main__":
    main()
