"""Plots of tables of runs: every seed, means with intervals, the paper's numbers. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odise_pl.runs.comparison import Row, column_title, columns_of

_WIDTH = 9.2  # inches
_SPACING = 0.2  # between the columns of a row, of the distance between two rows
_LONGEST = 30  # characters in a line of a row's name
_PAPER = {"ade20k": ("paper: ADE20K", "D"), "coco": ("paper: COCO", "s")}


def draw(
    tables: Mapping[str, Sequence[Row]],
    names: Mapping[str, str] | None = None,
    colours: Sequence[str] = ("C0", "C1", "C2", "C3"),
    ink: Sequence[str] = ("0.2", "0.6"),
) -> Figure:
    """Plot tables below each other: PQ of each seed, mean and 95 % interval, and the paper's on the right.

    Args:
        tables: rows by title; at least one has scores.
        names: of the columns to show; None: every PQ.
        colours: of the columns.
        ink: colours of the paper's numbers.
    """
    if names is None:
        found = columns_of([row for rows in tables.values() for row in rows])
        names = {c: column_title(c) for c in found if c.rpartition(".")[2].startswith("pq")}
    heights = [len(rows) * max(3, len(names)) / 3 + 0.8 for rows in tables.values()]
    size = (_WIDTH, 0.36 * sum(heights) + 0.9 + 0.25 * len(tables))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(tables), 2, squeeze=False, sharex="col", height_ratios=heights, width_ratios=(1.7, 1)
    )
    for (title, rows), (ours, theirs) in zip(tables.items(), grid, strict=True):
        _measured(ours, rows, names, colours)
        _published(theirs, rows, ink)
        ours.set_title(title)
        ours.set_yticks(range(len(rows)), ["\n".join(wrap(row.name, _LONGEST)) for row in rows])
        theirs.set_yticks(range(len(rows)), [""] * len(rows))
        for plot in (ours, theirs):
            plot.set_ylim(len(rows) - 0.45, -0.55)
            plot.grid(axis="y", visible=False)
            plot.tick_params(length=0, labelbottom=True)
    labels = {"left": "PQ: each seed (|), mean, 95 % interval", "right": "PQ in the paper"}
    for plots, (place, label) in zip(grid.T, labels.items(), strict=True):
        shown = [plot for plot in plots if plot.get_lines()]
        # not of intervals, which can be wider than the plot
        points = [float(x) for plot in shown for line in plot.get_lines() for x in line.get_xdata()]
        plots[0].set_xlim(0, 1.08 * max(points, default=0) + 1)
        lines = {str(line.get_label()): line for plot in shown for line in plot.get_lines()}
        legend = [line for name, line in lines.items() if name in (*names.values(), *dict(_PAPER.values()))]
        figure.legend(handles=legend, ncols=3, loc=f"outside upper {place}", handletextpad=0.3)
        for plot in plots:
            plot.set_visible(plot in shown)
        for plot in shown[-1:]:
            plot.set_xlabel(label)
    return figure


def _measured(plot: Axes, rows: Sequence[Row], names: Mapping[str, str], colours: Sequence[str]) -> None:
    """A tick for each seed, a dot for the mean, and its interval, by row and column."""
    for number, (column, label) in enumerate(names.items()):
        colour = colours[number % len(colours)]
        for place, row in enumerate(rows):
            if found := row.estimate(column):
                height = place + _SPACING * 3 / max(3, len(names)) * (number - (len(names) - 1) / 2)
                values = [*row.scores[column].values()]
                plot.plot(values, [height] * len(values), "|", markersize=8, color=colour)
                plot.plot([found.mean], [height], "o", markersize=5, color=colour, label=label)
                half = found.half or 0
                plot.hlines(height, found.mean - half, found.mean + half, color=colour, linewidth=1)


def _published(plot: Axes, rows: Sequence[Row], ink: Sequence[str]) -> None:
    for (field, (label, marker)), colour in zip(_PAPER.items(), ink, strict=True):
        values = {place: row.paper and getattr(row.paper, field) for place, row in enumerate(rows)}
        known = {place: value for place, value in values.items() if value is not None}
        if known:
            plot.plot([*known.values()], [*known], marker, markersize=5, color=colour, label=label)
