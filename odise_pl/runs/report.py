"""Tables that compare finished runs with the paper's. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from odise_pl.files import write_text
from odise_pl.metrics.tables import NONE, Table
from odise_pl.runs.published import ABLATIONS, STANDARD
from odise_pl.runs.record import FinishedRun, RunSettings

METRICS = {"PQ": "pq", "mAP": "map", "mIoU": "miou"}
Groups = Mapping[RunSettings, Sequence[FinishedRun]]


def group_by_settings(runs: Iterable[FinishedRun]) -> Groups:
    """The runs of each combination of settings, in the order of the settings' values."""
    groups: dict[RunSettings, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: [str(value) for value in vars(run.settings).values()]):
        groups.setdefault(run.settings, []).append(run)
    return groups


def ablation_table(title: str, runs: Iterable[FinishedRun]) -> Table:
    """One of the paper's tables with our scores and values, of runs with its fixed settings."""
    name, published = ABLATIONS[title]
    fixed = {key: value for key, value in STANDARD.items() if key != name}
    groups = group_by_settings(run for run in runs if fixed.items() <= vars(run.settings).items())
    columns, rows = _columns(groups), []
    for value in dict.fromkeys([*published, *(getattr(settings, name) for settings in groups)]):
        paper = [f"{pq:.1f}" for pq in published.get(value, ())] or [NONE, NONE]
        found = [settings for settings in groups if getattr(settings, name) == value]
        for settings in found:
            kind = (settings.model, "yes" if settings.learnable_time else "no")
            rows.append((value, *kind, *paper, *_cells(columns, groups[settings])))
        if not found:
            rows.append((value, NONE, NONE, *paper, *_cells(columns, [])))
    header = (title, "model", "time learned", "paper: ADE20K PQ", "paper: COCO PQ", *columns, "runs")
    return Table(title, header, tuple(rows))


def all_runs_table(runs: Iterable[FinishedRun]) -> Table:
    """A row for each combination of settings, averaged over its runs."""
    groups = group_by_settings(runs)
    columns = _columns(groups)
    rows = tuple(
        (*map(str, vars(settings).values()), *_cells(columns, group)) for settings, group in groups.items()
    )
    names = [name.replace("_", " ") for name in RunSettings.__dataclass_fields__]
    return Table("all runs", (*names, *columns, "runs"), rows)


def _columns(groups: Groups) -> dict[str, tuple[str, str]]:
    """Evaluation set and metric by the title of their column."""
    sets = sorted({data for group in groups.values() for run in group for data in run.scores})
    return {f"{data} {title}": (data, metric) for data in sets for title, metric in METRICS.items()}


def _cells(columns: Mapping[str, tuple[str, str]], runs: Sequence[FinishedRun]) -> list[str]:
    """Percentages averaged over the runs that measured them, and the number of runs."""
    measured = [
        [100 * run.scores[data][metric] for run in runs if metric in run.scores.get(data, {})]
        for data, metric in columns.values()
    ]
    return [*(f"{fmean(values):.1f}" if values else NONE for values in measured), str(len(runs))]


def write(runs: Sequence[FinishedRun], folder: Path) -> list[Path]:
    """Write ``ablations.md`` and one CSV for each table; returns their paths."""
    tables = [*(ablation_table(title, runs) for title in ABLATIONS), all_runs_table(runs)]
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
    return paths
