"""Plots of the demo's training and of the small world's tables, each in a light and a dark variant."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odise_pl.errors import UserError
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
_MEASURED = {"toy_open.pq": "all classes", "base.pq": "base classes", "novel.pq": "novel classes"}
_PUBLISHED = {"coco": "COCO", "ade20k": "ADE20K"}
_TITLES = {"timestep": "Timestep", "captioner": "Captioner", "classifier": "Classifier"}
_NAMES = {
    "label": "labels",
    "caption": "captions",
    "label, random diffusion weights": "labels, random\ndiffusion weights",
}


def draw_curves(run: Path, folder: Path) -> list[Path]:
    """Draw the losses, learning rate and scores of a run's TensorBoard log."""
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    missing = {"train/loss", "lr-AdamW/pg1", *_LOSSES.values(), *_SCORES.values()} - set(
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
        _curve(rate, log, "lr-AdamW/pg1", theme.series[0])
        rate.set_title("Learning rate")
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
    """Draw the comparisons of ``small_world.json`` beside the paper's: supervision.svg and ablations.svg."""
    if not figures.is_file():
        raise UserError(f"{figures} is missing: restore it from the repository (git checkout {figures})")
    tables = json.loads(figures.read_text())["tables"]
    paths = []
    for theme in THEMES:
        supervision = _comparisons({"Supervision": tables["supervision"]["rows"]}, theme)
        paths.append(_save(supervision, folder, "supervision", theme))
        ablations = _comparisons({title: tables[name]["rows"] for name, title in _TITLES.items()}, theme)
        paths.append(_save(ablations, folder, "ablations", theme))
    return paths


def _comparisons(tables: Mapping[str, Sequence[Mapping[str, Any]]], theme: Theme) -> Figure:
    """A row of plots for each table: our scores with their spread, the paper's; rows in the paper's order."""
    heights = [len(rows) + 0.8 for rows in tables.values()]
    with plotting(theme):
        figure = Figure(
            figsize=(_WIDTH, 0.36 * sum(heights) + 0.9 + 0.25 * len(tables)), layout="constrained"
        )
        grid = figure.subplots(
            len(tables), 2, squeeze=False, sharex="col", height_ratios=heights, width_ratios=(1.7, 1)
        )
        for (title, rows), (ours, theirs) in zip(tables.items(), grid, strict=True):
            ordered = sorted(rows, key=lambda row: -_published(row, "ade20k"))
            _measured(ours, ordered, theme)
            _published_scores(theirs, ordered, theme)
            ours.set_title(title)
        for plot, label in zip(
            grid[-1],
            ("PQ on toy_open, mean and standard deviation over seeds", "PQ in the paper"),
            strict=True,
        ):
            plot.set_xlabel(label)
            plot.tick_params(labelbottom=True)
        for column, plot in enumerate(grid[0]):
            handles, labels = plot.get_legend_handles_labels()
            figure.legend(
                handles,
                labels,
                ncols=3,
                loc=("outside upper left", "outside upper right")[column],
                labelcolor=theme.ink,
                handletextpad=0.3,
                columnspacing=1.2,
            )
    return figure


def _measured(plot: Axes, rows: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    """Mean and standard deviation of each row as a dot with whiskers."""
    for number, (key, label) in enumerate(_MEASURED.items()):
        places = [row + 0.2 * (number - 1) for row in range(len(rows))]
        means, spreads = zip(*(row[key] for row in rows), strict=True)
        plot.errorbar(
            means,
            places,
            xerr=spreads,
            fmt="o",
            markersize=5,
            elinewidth=1.6,
            color=theme.series[number],
            label=label,
        )
    _row_names(plot, [_NAMES.get(row["name"], row["name"]) for row in rows])


def _published_scores(plot: Axes, rows: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    for (key, label), marker in zip(_PUBLISHED.items(), "Ds", strict=True):
        known = [(_published(row, key), place) for place, row in enumerate(rows) if _published(row, key)]
        colour = theme.series[3] if key == "ade20k" else theme.muted
        plot.plot(*zip(*known, strict=True), marker, markersize=5, color=colour, label=label)
    _row_names(plot, [""] * len(rows))


def _row_names(plot: Axes, names: Sequence[str]) -> None:
    plot.set_yticks(range(len(names)), names)
    plot.set_ylim(len(names) - 0.45, -0.55)
    plot.set_xlim(left=0)
    plot.grid(axis="y", visible=False)
    plot.tick_params(length=0)


def _published(row: Mapping[str, Any], key: str) -> float:
    return float((row.get("paper") or {}).get(key) or 0)


def _save(figure: Figure, folder: Path, name: str, theme: Theme) -> Path:
    path = folder / f"{name}{theme.suffix}.svg"
    with plotting(theme):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path
