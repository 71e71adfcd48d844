"""Tables of finished runs beside the paper's. Imports no torch."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odise_pl.runs.published import ABLATIONS, STANDARD, Ablation
from odise_pl.runs.record import FinishedRun, RunSettings

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


@dataclass(frozen=True)
class Row:
    """Runs of an ablation that differ in nothing it knows of.

    Attributes:
        value: of what varies.
        model, learned: ``label`` or ``caption``, and whether the time embedding is learned; empty if nothing
            was run.
        runs: whose scores are averaged.
    """

    value: str
    model: str
    learned: str
    runs: tuple[FinishedRun, ...]


def rows_of(ablation: Ablation, runs: Sequence[FinishedRun]) -> list[Row]:
    """The paper's rows and those of other values, where everything else is as in the paper's table."""
    fixed = {name: value for name, value in STANDARD.items() if name != ablation.field}
    groups: dict[str, dict[tuple[str, str], list[FinishedRun]]] = {value: {} for value in ablation.rows}
    for run in runs:
        if all(getattr(run.settings, name) == value for name, value in fixed.items()):
            group = groups.setdefault(getattr(run.settings, ablation.field), {})
            kind = (run.settings.model, "yes" if run.settings.learnable_time else "no")
            group.setdefault(kind, []).append(run)
    return [
        Row(value, *kind, tuple(some))
        for value, kinds in groups.items()
        for kind, some in sorted(kinds.items()) or [((_NONE, _NONE), [])]
    ]


def ablation_table(ablation: Ablation, runs: Sequence[FinishedRun]) -> Table:
    """The paper's table with our columns beside it, a dash where there is nothing."""
    found = rows_of(ablation, runs)
    columns = _columns([run for row in found for run in row.runs])
    paper = ("paper: ADE20K PQ", "paper: COCO PQ")
    header = (ablation.name, "model", "time learned", *paper, *(_title(c) for c in columns), "runs")
    rows = []
    for row in found:
        known = ablation.rows.get(row.value)
        published = [f"{x:.1f}" for x in known] if known else [_NONE] * 2
        scores = _cells(columns, mean_scores(row.runs))
        rows.append((row.value, row.model, row.learned, *published, *scores, str(len(row.runs))))
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


def _labels(rows: Sequence[Row]) -> list[str]:
    """The values, and what tells rows of one value apart."""
    often = Counter(row.value for row in rows)
    return [
        f"{row.value}\n{row.model}{', time learned' if row.learned == 'yes' else ''}"
        if often[row.value] > 1
        else row.value
        for row in rows
    ]


def draw(runs: Sequence[FinishedRun], path: Path) -> None:
    """PQ of every ablation as bars, the paper's and ours side by side, as a PNG."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, ablation in zip(figure.subplots(1, len(ABLATIONS)), ABLATIONS, strict=True):
        found = rows_of(ablation, runs)
        scores = [mean_scores(row.runs) for row in found]
        sets = sorted({data for by in scores for data, metric in by if metric == "pq"})
        known = [ablation.rows.get(row.value, (0.0, 0.0)) for row in found]
        series = {f"paper: {name}": [pair[i] for pair in known] for i, name in enumerate(("ADE20K", "COCO"))}
        series |= {data: [by.get((data, "pq"), 0.0) for by in scores] for data in sets}
        width = 0.8 / len(series)
        for i, (name, heights) in enumerate(series.items()):
            places = [x + (i - (len(series) - 1) / 2) * width for x in range(len(found))]
            color = ("0.75", "0.45")[i] if i < 2 else None
            axes.bar(places, heights, width, label=name, color=color)
        axes.set_xticks(range(len(found)), _labels(found), rotation=20)
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
