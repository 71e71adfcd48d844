"""Tables of finished runs beside the paper's: ``python -m odise_pl.report DIR``. Imports no torch."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odise_pl.errors import UserError
from odise_pl.published import ABLATIONS, STANDARD, Ablation
from odise_pl.runs import FinishedRun, RunSettings, find_runs

METRICS = {"PQ": "pq", "mAP": "map", "mIoU": "miou"}
_NONE = "-"


@dataclass(frozen=True)
class Table:
    """Rows under a header, all of one length; cells are text as shown."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        text = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        return f"## {self.name}\n\n{text}\n"


def mean_scores(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], float]:
    """Percentages by evaluation set and metric, the mean over the runs that measured them."""
    values: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for data, scores in run.scores.items():
            for metric in METRICS.values():
                if metric in scores:
                    values.setdefault((data, metric), []).append(100 * scores[metric])
    return {key: fmean(found) for key, found in values.items()}


def runs_of(ablation: Ablation, runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs by the value that varies, where everything else is as in the paper's table."""
    fixed = {name: value for name, value in STANDARD.items() if name != ablation.field}
    rows: dict[str, list[FinishedRun]] = {value: [] for value in ablation.rows}
    for run in runs:
        if all(getattr(run.settings, name) == value for name, value in fixed.items()):
            rows.setdefault(getattr(run.settings, ablation.field), []).append(run)
    return rows


def ablation_table(ablation: Ablation, runs: Sequence[FinishedRun]) -> Table:
    """The paper's table with our columns beside it, a dash where there is nothing."""
    found = runs_of(ablation, runs)
    columns = _columns([run for group in found.values() for run in group])
    header = (ablation.name, "paper: ADE20K PQ", "paper: COCO PQ", *(_title(c) for c in columns), "runs")
    rows = []
    for value, group in found.items():
        published = [f"{x:.1f}" for x in ablation.rows[value]] if value in ablation.rows else [_NONE] * 2
        rows.append((value, *published, *_cells(columns, mean_scores(group)), str(len(group))))
    return Table(ablation.name, header, tuple(rows))


def all_runs_table(runs: Sequence[FinishedRun]) -> Table:
    """Every combination of settings that was run; runs that differ in nothing else are averaged."""
    groups: dict[RunSettings, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    columns, names = _columns(runs), [field.name for field in fields(RunSettings)]
    rows = tuple(
        (*(str(getattr(s, name)) for name in names), *_cells(columns, mean_scores(group)), str(len(group)))
        for s, group in sorted(groups.items(), key=lambda item: [str(getattr(item[0], n)) for n in names])
    )
    header = (*(name.replace("_", " ") for name in names), *(_title(c) for c in columns), "runs")
    return Table("all runs", header, rows)


def _columns(runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
    sets = sorted({data for run in runs for data in run.scores})
    return [(data, metric) for data in sets for metric in METRICS.values()]


def _title(column: tuple[str, str]) -> str:
    shown = {metric: name for name, metric in METRICS.items()}
    return f"{column[0]} {shown[column[1]]}"


def _cells(columns: Sequence[tuple[str, str]], scores: Mapping[tuple[str, str], float]) -> list[str]:
    return [f"{scores[c]:.1f}" if c in scores else _NONE for c in columns]


def draw(runs: Sequence[FinishedRun], path: Path) -> None:
    """PQ of every ablation as bars, the paper's and ours side by side, as a PNG."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, ablation in zip(figure.subplots(1, len(ABLATIONS)), ABLATIONS, strict=True):
        found = runs_of(ablation, runs)
        scores = {value: mean_scores(group) for value, group in found.items()}
        sets = sorted({data for by in scores.values() for data, metric in by if metric == "pq"})
        series = {f"paper: {name}": [ablation.rows[v][i] if v in ablation.rows else 0.0 for v in found]
                  for i, name in enumerate(("ADE20K", "COCO"))}  # fmt: skip
        series |= {data: [scores[v].get((data, "pq"), 0.0) for v in found] for data in sets}
        width = 0.8 / len(series)
        for i, (name, heights) in enumerate(series.items()):
            places = [x + (i - (len(series) - 1) / 2) * width for x in range(len(found))]
            color = ("0.75", "0.45")[i] if i < 2 else None
            axes.bar(places, heights, width, label=name, color=color)
        axes.set_xticks(range(len(found)), list(found), rotation=20)
        axes.set(title=ablation.name, ylabel="PQ (%)")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def write(runs: Sequence[FinishedRun], folder: Path) -> list[Path]:
    """Write ``ablations.md``, one CSV for each table, and ``ablations.png``; returns their paths."""
    tables = [*(ablation_table(ablation, runs) for ablation in ABLATIONS), all_runs_table(runs)]
    folder.mkdir(parents=True, exist_ok=True)
    notes = (
        "In percent. The paper's numbers are those of its caption model, trained at full scale on COCO. In "
        "the first three tables what does not vary is step 0, the implicit captioner and both classifiers.\n"
    )
    paths = [folder / "ablations.md"]
    paths[0].write_text("\n".join([notes, *(table.markdown() for table in tables)]), encoding="utf-8")
    for table in tables:
        paths.append(folder / f"{table.name.replace(' ', '_')}.csv")
        with paths[-1].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([table.header, *table.rows])
    paths.append(folder / "ablations.png")
    draw(runs, paths[-1])
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m odise_pl.report", description=__doc__)
    parser.add_argument("dir", type=Path, help="folder with finished runs at any depth, e.g. runs/NAME")
    parser.add_argument("--out", type=Path, help="folder for the tables (default: DIR/report)")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.dir)
        paths = write(runs, options.out or options.dir / "report")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(paths[0].read_text(encoding="utf-8"))
    print(f"{len(runs)} runs; written: " + ", ".join(str(path) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
