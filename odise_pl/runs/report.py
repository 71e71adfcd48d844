"""Tables that compare finished runs with the paper's. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odise_pl.files import write_text
from odise_pl.metrics.tables import NONE, Table
from odise_pl.runs.published import ABLATIONS, STANDARD, Ablation
from odise_pl.runs.record import AblationSettings, FinishedRun

METRICS = {"pq": "PQ", "map": "mAP", "miou": "mIoU"}


def mean_scores(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], float]:
    """Percentages by evaluation set and metric, averaged over the runs that measured them."""
    values: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for data, scores in run.scores.items():
            for metric in METRICS:
                if metric in scores:
                    values.setdefault((data, metric), []).append(100 * scores[metric])
    return {key: fmean(found) for key, found in values.items()}


@dataclass(frozen=True)
class Row:
    """Runs of an ablation with the same settings.

    Attributes:
        value: of the setting that varies.
        model: ``label`` or ``caption``; :data:`NONE` without runs.
        learned: ``yes`` if the time embedding is learned, else ``no``; :data:`NONE` without runs.
        runs: to average.
    """

    value: str
    model: str
    learned: str
    runs: tuple[FinishedRun, ...]


def rows_of(ablation: Ablation, runs: Sequence[FinishedRun]) -> list[Row]:
    """The paper's rows and those of other values; runs that differ in another setting are skipped."""
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
        for kind, some in sorted(kinds.items()) or [((NONE, NONE), [])]
    ]


def ablation_table(ablation: Ablation, runs: Sequence[FinishedRun]) -> Table:
    """The paper's table with our scores beside it."""
    found = rows_of(ablation, runs)
    columns = _columns([run for row in found for run in row.runs])
    paper = ("paper: ADE20K PQ", "paper: COCO PQ")
    header = (ablation.name, "model", "time learned", *paper, *(_title(c) for c in columns), "runs")
    rows = []
    for row in found:
        known = ablation.rows.get(row.value)
        published = [f"{x:.1f}" for x in known] if known else [NONE] * 2
        scores = _cells(columns, mean_scores(row.runs))
        rows.append((row.value, row.model, row.learned, *published, *scores, str(len(row.runs))))
    return Table(ablation.name, header, tuple(rows))


def all_runs_table(runs: Sequence[FinishedRun]) -> Table:
    """A row for each combination of settings, averaged over its runs."""
    groups: dict[AblationSettings, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    columns, names = _columns(runs), [field.name for field in fields(AblationSettings)]
    rows = tuple(
        (*(str(getattr(s, name)) for name in names), *_cells(columns, mean_scores(group)), str(len(group)))
        for s, group in sorted(groups.items(), key=lambda item: [str(getattr(item[0], n)) for n in names])
    )
    header = (*(name.replace("_", " ") for name in names), *(_title(c) for c in columns), "runs")
    return Table("all runs", header, rows)


def _columns(runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
    sets = sorted({data for run in runs for data in run.scores})
    return [(data, metric) for data in sets for metric in METRICS]


def _title(column: tuple[str, str]) -> str:
    data, metric = column
    return f"{data} {METRICS[metric]}"


def _cells(columns: Sequence[tuple[str, str]], scores: Mapping[tuple[str, str], float]) -> list[str]:
    return [f"{scores[c]:.1f}" if c in scores else NONE for c in columns]


def _labels(rows: Sequence[Row]) -> list[str]:
    """The values; rows of the same value also show their other settings."""
    often = Counter(row.value for row in rows)
    return [
        f"{row.value}\n{row.model}{', time learned' if row.learned == 'yes' else ''}"
        if often[row.value] > 1
        else row.value
        for row in rows
    ]


def draw(runs: Sequence[FinishedRun], path: Path) -> None:
    """Draw the PQ of every ablation as bars, the paper's and ours side by side, to a PNG."""
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
        "In percent. The paper's numbers are those of its caption model, trained at full scale on COCO. The "
        "fixed settings of the first three tables are step 0, the implicit captioner and both classifiers.\n"
    )
    paths = [folder / "ablations.md"]
    write_text(paths[0], "\n".join([notes, *(f"## {t.title}\n\n{t.markdown()}" for t in tables)]))
    for table in tables:
        paths.append(folder / f"{table.title.replace(' ', '_')}.csv")
        write_text(paths[-1], table.csv())
    paths.append(folder / "ablations.png")
    draw(runs, paths[-1])
    return paths
