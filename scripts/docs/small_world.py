"""Train and evaluate all rows of the small world's tables: ``python -m scripts.docs.small_world``.

Stop it at any time and run it again, on any machine: finished runs are skipped, interrupted ones resume.
All rows are trained with one seed before the next. At the end, the scores of all runs in runs/small_world go
to docs/figures/small_world.json and into the plots, and the tables are printed. To share the work, give each
machine seeds of its own, and either copy the folders together and run it again, or run it with --add in turn.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from odise_pl import Segmenter, __version__
from odise_pl.checkpoints.weights import trainable_parameters
from odise_pl.errors import UserError
from odise_pl.runs.comparison import Row, as_json, difference_table, from_json, score_table
from odise_pl.runs.finished import FINISHED, FinishedRun, find_runs
from odise_pl.runs.published import ABLATIONS
from odise_pl.runs.report import Group, ablation_rows
from scripts.docs.comparisons import FOLDERS, METHOD_FOLDERS, NAME, PUBLISHED, RUNS, TABLES, commands
from scripts.docs.pictures import FIGURES, IMAGES
from scripts.docs.plots import draw_tables
from scripts.figures import write_figures

_PICTURE = Path("docs/images/example.png")
_RANDOM = "label, random", "label, random diffusion weights"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def execute(command: Sequence[str]) -> bool:
    """Run a command of ours; returns whether it succeeded.

    Raises:
        SystemExit: a signal stopped it.
    """
    # in a session of its own: Ctrl-C would arrive twice, and the second one interrupts without saving
    words = command[1:] if command[0] == "python" else ("-m", "odise_pl", *command[1:])
    child = subprocess.Popen([sys.executable, *words], start_new_session=True)
    before = {number: signal.signal(number, lambda *_: child.terminate()) for number in _SIGNALS}
    code = child.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM):
        raise SystemExit(128 + signal.SIGTERM)
    return code == 0


def collect(runs: Path, tables: Iterable[str] = TABLES) -> dict[str, list[Row]]:
    """The rows of tables, from the finished runs.

    Raises:
        UserError: a table has no runs.
    """
    return {
        name: list(_by_folder(runs / NAME, *FOLDERS[name]))
        if name in FOLDERS
        else [row for row, _ in _rows(name, runs)]
        for name in tables
    }


def _by_folder(runs: Path, reference: str, folders: Mapping[str, tuple[str, str | None]]) -> Iterator[Row]:
    """The rows that have runs: some take hours, and the others need not wait for them."""
    for name, (folder, paper) in folders.items():
        if found := _finished(runs / folder):
            group = Group(found[0].settings, found[0].conditions, tuple(found))
            yield Row(name, reference, PUBLISHED.get(paper or ""), group.scores())


def _finished(folder: Path) -> list[FinishedRun]:
    """The finished runs below a folder, possibly none."""
    return find_runs(folder) if any(folder.rglob(FINISHED)) else []


def _rows(table: str, runs: Path) -> list[tuple[Row, Group]]:
    """The rows with runs, in the paper's order, under the names of the documentation."""
    ablation = next(one for one in ABLATIONS if one.name == table)
    folders = [runs / NAME / name for name in TABLES[table]]
    found = [(row, group) for row, group in ablation_rows(ablation, find_runs(*folders)) if group]
    names = {row.name: row.name.replace(*_RANDOM) for row, _ in found}
    if ablation.field == "timesteps":  # step 0 with a learned time embedding is the same network
        names |= {row.name: "learnable" for row, group in found if group.settings.learnable_time}
    order = [*ablation.rows, *names.values()]
    renamed = []
    for row, group in found:
        name, reference = names[row.name], names.get(row.reference or "")
        renamed.append((Row(name, reference, ablation.rows.get(name), row.scores), group))
    return sorted(renamed, key=lambda pair: order.index(pair[0].name))


def with_known(rows: Sequence[Row], known: Sequence[Row]) -> list[Row]:
    """Rows with the scores of other seeds, and other rows, that are known."""
    old, names = {row.name: row for row in known}, [row.name for row in rows]
    joined = [
        replace(row, scores={c: {**old[row.name].scores.get(c, {}), **by} for c, by in row.scores.items()})
        if row.name in old
        else row
        for row in rows
    ]
    return joined + [row for row in known if row.name not in names]


def costs_of_methods(runs: Path) -> dict[str, dict[str, float]]:
    """Parameters in millions, and processor milliseconds of an image on one thread (the least of five)."""
    torch.set_num_threads(1)
    costs = {}
    with Image.open(_PICTURE) as image:
        picture = image.convert("RGB")
    for name, folder in METHOD_FOLDERS.items():
        found = _finished(runs / NAME / folder)
        if not found:
            continue
        segmenter, seconds = Segmenter.from_pretrained(found[0].folder), []
        for _ in range(5):
            start = time.process_time()
            _ = segmenter(picture, segmenter.training).ids
            seconds.append(time.process_time() - start)
        costs[name] = {
            "parameters_million": sum(p.numel() for p in segmenter.model.parameters()) / 1e6,
            "trained_million": sum(p.numel() for p in trainable_parameters(segmenter.model).values()) / 1e6,
            "ms": 1000 * min(seconds),
        }
    return costs


def write(
    tables: Mapping[str, list[Row]],
    file: Path,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    add: bool = False,
) -> None:
    """Write the scores into the figures of the documentation; what else the file has stays.

    With ``add``, so do the scores of other seeds in these tables.
    """
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = kept.get("tables", {})
    if add:
        tables = {
            n: with_known(rows, from_json(known[n]) if n in known else []) for n, rows in tables.items()
        }
    what = (
        "The paper's comparisons on the small world, in percent: mean and sample standard deviation over "
        "seeds, and in runs the values of the seeds. paper is PQ of models trained on COCO. version is the "
        "project's, or several."
    )
    values = {name: value for name, value in kept.items() if name != "about"}
    values["tables"] = known | {
        name: {"version": _versions(known.get(name, {}) if add else {}), **table}
        for name, table in as_json(tables).items()
    }
    values["costs"] = {**kept.get("costs", {}), **(costs or {})}
    write_figures(file, what, values)


def _versions(kept: Mapping[str, Any]) -> str:
    """Those that measured a table: this one, and that of the scores that are kept."""
    return ", ".join(sorted({*filter(None, kept.get("version", "").split(", ")), __version__}))


def _seeds(text: str) -> list[int]:
    return sorted({int(seed) for seed in text.split(",")})


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=_seeds, default="0,1,2,3,4", help="of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE", help=", ".join(TABLES)
    )
    parser.add_argument("--add", action="store_true", help="keep the scores of other seeds in docs/figures")
    parser.add_argument("--list", action="store_true", help="only print the commands")
    options = parser.parse_args()
    todo = list(commands(options.tables, options.seeds))
    if options.list:
        print(*map(shlex.join, todo), sep="\n")
        return 0
    failed = [command for command in todo if not execute(command)]
    try:
        tables = collect(RUNS, options.tables)
        costs = costs_of_methods(RUNS) if "method" in tables else {}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write(tables, FIGURES, costs, options.add)
    for name, rows in tables.items():
        print(score_table(name, rows).markdown(), difference_table(name, rows).markdown(), sep="\n")
    print("written:", FIGURES, *draw_tables(FIGURES, IMAGES))
    print("python -m scripts.docs.numbers fills the pages")
    for command in failed:
        print(f"failed: {shlex.join(command)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
