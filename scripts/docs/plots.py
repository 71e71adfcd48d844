"""Plots of the demo's training and of the small world's tables, each in a light and a dark variant."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odise_pl.errors import UserError
from odise_pl.runs.comparison import Row, column_title, from_json
from odise_pl.runs.plot import draw
from scripts.docs.style import THEMES, Theme, plotting

_WIDTH = 9.2  # inches at 90 dots: the width of a README
_LOSSES = {
    "classification": "train/loss_classification",
    "mask": "train/loss_mask",
    "dice": "train/loss_dice",
}
_SCORES = {
    "toy_val": "val/toy_val/pq",
    "toy_open": "val/toy_open/pq",
    "toy_open, base": "val/toy_open/pq_base",
    "toy_open, novel": "val/toy_open/pq_novel",
}
_MEASURED = {
    "toy_open.pq": "toy_open, all classes",
    "toy_open.pq_base": "base",
    "toy_open.pq_novel": "novel",
}
_PLOTS = {
    "supervision": {"supervision": "Supervision"},
    "ablations": {"timestep": "Timestep", "captioner": "Captioner", "classifier": "Classifier"},
    "representations": {"representation": "Representation"},
}
_EFFECTS = ("toy_val.pq", "toy_open.pq_base", "toy_open.pq_novel")
_NOVEL = {"toy_open.pq_novel": "PQ of novel classes", "toy_open.miou_novel": "mIoU of novel classes"}


def draw_curves(run: Path, folder: Path) -> list[Path]:
    """Draw the losses, learning rate and scores of a run's TensorBoard log."""
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    missing = {"train/loss", "lr-MuonAdamW/pg1", *_LOSSES.values(), *_SCORES.values()} - set(
        log.Tags()["scalars"]
    )
    if missing:
        raise UserError(f"{run}/tensorboard has no {', '.join(sorted(missing))}: make demo")
    return [_save(_curves(log, theme), folder, "curves", theme) for theme in THEMES]


def _curves(log: EventAccumulator, theme: Theme) -> Figure:
    with plotting(theme):
        figure = Figure(figsize=(_WIDTH, 4.9), layout="constrained")
        axes = figure.subplots(2, 2)
        total, parts, rate, scores = axes.flat
        _curve(total, log, "train/loss", theme.series[0])
        total.set_title("Loss, all decoder layers")
        for (name, tag), colour in zip(_LOSSES.items(), theme.series, strict=False):
            _curve(parts, log, tag, colour, name)
        parts.set_title("Losses of the last layer")
        parts.legend(ncols=3, loc="upper right", labelcolor=theme.ink, handlelength=1.2)
        _curve(rate, log, "lr-MuonAdamW/pg1", theme.series[0])
        rate.set_title("Learning rate of AdamW")
        rate.ticklabel_format(axis="y", style="plain")
        for plot in (total, parts, rate):
            plot.set_ylim(bottom=0)
            plot.margins(x=0.01)
            plot.set_xlabel("step")
        last = {name: log.Scalars(tag)[-1].value for name, tag in _SCORES.items()}
        bars = scores.barh(list(last), list(last.values()), 0.62, color=theme.series[0])
        scores.bar_label(bars, fmt="%.1f", padding=4, color=theme.ink)
        scores.set(xlim=(0, 100), title="Panoptic quality at the end")
        scores.set_xlabel("PQ in percent")
        scores.invert_yaxis()
        scores.grid(axis="y", visible=False)
        scores.tick_params(length=0)
    return figure


def _curve(plot: Axes, log: EventAccumulator, tag: str, colour: str, label: str | None = None) -> None:
    points = log.Scalars(tag)
    plot.plot([p.step + 1 for p in points], [p.value for p in points], color=colour, label=label)


def draw_tables(figures: Path, folder: Path) -> list[Path]:
    """Draw the comparisons of ``small_world.json`` beside the paper's, those that are there."""
    if not figures.is_file():
        raise UserError(f"{figures} is missing: restore it from the repository (git checkout {figures})")
    content = json.loads(figures.read_text())
    tables, paths = content["tables"], []
    for theme in THEMES:
        if "method" in tables:
            costs = {name: cost["ms"] for name, cost in content["costs"].items()}
            paths.append(_save(_methods(from_json(tables["method"]), costs, theme), folder, "methods", theme))
        if "effort" in tables:
            paths.append(_save(_efforts(from_json(tables["effort"]), theme), folder, "effort", theme))
        for name, titles in _PLOTS.items():
            if not titles.keys() <= tables.keys():
                continue
            rows = {title: _in_order_of_the_paper(from_json(tables[key])) for key, title in titles.items()}
            with plotting(theme):
                figure = draw(rows, _MEASURED, theme.series, (theme.series[3], theme.muted))
            paths.append(_save(figure, folder, name, theme))
    return paths


def _methods(rows: Sequence[Row], costs: Mapping[str, float], theme: Theme) -> Figure:
    """What methods reach on novel classes over the time that they take for an image."""
    with plotting(theme):
        figure = Figure(figsize=(_WIDTH, 5.2), layout="constrained")
        for plot, (column, title) in zip(figure.subplots(1, 2), _NOVEL.items(), strict=True):
            found = {row.name: one for row in rows if (one := row.estimate(column)) and row.name in costs}
            points = {name: (costs[name], one.mean) for name, one in found.items()}
            plot.plot(*zip(*points.values(), strict=True), "o", color=theme.series[0], markersize=5)
            plot.set(xscale="log", title=title)
            plot.xaxis.set_major_formatter(LogFormatter())
            plot.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            plot.set_xlabel("processor time for an image, ms")
            plot.set_ylim(bottom=-1)
            plot.margins(x=0.08)
            _label(plot, points, theme)
    return figure


def _efforts(rows: Sequence[Row], theme: Theme) -> Figure:
    """What is reached over each setting: of the seeds, and their mean.

    Rows are named ``VALUE SETTING``, the start of all after all values.
    """
    values = [dict(part.split(" ", 1)[::-1] for part in row.name.split(", ")) for row in rows]
    start = next(one for one in values if len(one) > 1)
    columns = [column for column in _EFFECTS if any(row.scores.get(column) for row in rows)]
    with plotting(theme):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        plots = figure.subplots(
            1, len(start), sharey=True, width_ratios=[len(start), *[2] * (len(start) - 1)]
        )
        for plot, name in zip(plots, start, strict=True):
            pairs = zip(values, rows, strict=True)
            found = sorted(((float(x[name]), row) for x, row in pairs if name in x), key=lambda pair: pair[0])
            for column, colour in zip(columns, theme.series, strict=False):
                seeds = [(x, y) for x, row in found for y in row.scores.get(column, {}).values()]
                plot.plot(*zip(*seeds, strict=True), "_", color=colour, alpha=0.7)
                means = [(x, one.mean) for x, row in found if (one := row.estimate(column))]
                plot.plot(*zip(*means, strict=True), ".-", color=colour, label=column_title(column))
            plot.set(xscale="log", xlabel="\n".join(wrap(name, 20)))
            plot.set_xticks([x for x, _ in found], [f"{x:g}" for x, _ in found], fontsize=8)
            plot.minorticks_off()
        plots[0].set_ylabel("PQ in percent")
        figure.legend(*plots[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def _label(plot: Axes, points: Mapping[str, tuple[float, float]], theme: Theme) -> None:
    """Names of points in a column beside the plot, ordered by their heights, with lines to the points."""
    bottom, top = plot.get_ylim()
    gap = (top - bottom) / 24
    height = bottom - gap
    for name, point in sorted(points.items(), key=lambda pair: pair[1][1]):
        height = max(height + gap, point[1])
        plot.annotate(
            name,
            point,
            (1.06, (height - bottom) / (top - bottom)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": theme.line, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 2},
        )


def _in_order_of_the_paper(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -(row.paper.ade20k or 0) if row.paper else 0)


def _save(figure: Figure, folder: Path, name: str, theme: Theme) -> Path:
    path = folder / f"{name}{theme.suffix}.svg"
    with plotting(theme):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path
