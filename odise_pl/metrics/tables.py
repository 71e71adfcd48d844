"""Tables of scores for the terminal, Markdown and CSV. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import table as rich_table
from rich.markup import escape
from rich.text import Text

# Column of the table -> name among the scores of a result.
COLUMNS = {
    "PQ": "pq",
    "SQ": "sq",
    "RQ": "rq",
    "PQ_th": "pq_things",
    "PQ_st": "pq_stuff",
    "mAP": "map",
    "AP50": "ap50",
    "mIoU": "miou",
}
PAPER = "paper"
NONE = "-"
_HEADLINE = ("data", "PQ", "mAP", "mIoU")

Summary = Mapping[str, Any]  # of one data set, see metrics.report.as_dict
Published = Mapping[str, Mapping[str, float]]  # percentages by data set and score


@dataclass(frozen=True)
class Table:
    """A table of text cells, :data:`NONE` for missing values.

    Attributes:
        title: of the table.
        header: names of the columns; the first column names the rows.
        rows: cells, as long as the header.
        notes: lines below the table.
        headline: first words of the columns that a narrow terminal shows; empty: all.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    headline: Collection[str] = ()

    def terminal(self, width: int | None = None) -> rich_table.Table:
        """A table for ``rich``, with only the headline columns if not all fit into ``width`` characters."""
        lines = [self.header, *self.rows]
        needed = sum(max(map(len, column)) + 3 for column in zip(*lines, strict=True)) + 1
        fits = width is None or needed <= width or not self.headline
        shown = [i for i, name in enumerate(self.header) if fits or name.split()[0] in self.headline]
        notes = Text("\n".join(self.notes))
        table = rich_table.Table(title=self.title, caption=notes, caption_justify="left")
        for i in shown:
            table.add_column(self.header[i], justify="right" if i else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*(escape(row[i]) for i in shown))
        return table

    def markdown(self) -> str:
        """The table and its notes in Markdown."""
        lines = [_markdown_row(self.header), "|---|" + "---:|" * (len(self.header) - 1)]
        lines += [_markdown_row(row) for row in self.rows]
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes]) + "\n"

    def csv(self) -> str:
        """The table in CSV; missing values are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows([["" if cell == NONE else cell for cell in row] for row in self.rows])
        return text.getvalue()


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def result_table(results: Sequence[Summary], published: Published | None = None) -> Table:
    """Scores in percent: a row for each data set, and rows for its base and novel classes and their
    harmonic mean if it has both.

    Args:
        results: from :func:`~odise_pl.metrics.report.as_dict`.
        published: numbers to show beside them, in percent.
    """
    names = [result["data"] for result in results]
    beside = {name: scores for name, scores in (published or {}).items() if name in names}
    columns: list[tuple[str, str, bool]] = []
    for column, key in COLUMNS.items():
        columns.append((column, key, False))
        if any(key in scores for scores in beside.values()):
            columns.append((f"{column} {PAPER}", key, True))
    rows: list[tuple[str, ...]] = []
    for result in results:
        theirs = beside.get(result["data"], {})
        cells = (
            _cell(theirs, key, 1, 1) if paper else _cell(result["scores"], key) for _, key, paper in columns
        )
        rows.append((result["data"], *cells))
        for group, scores in result["groups"].items():
            cells = (NONE if paper else _cell(scores, key) for _, key, paper in columns)
            rows.append((f"{result['data']}, {group}", *cells))
    header = ("data", *(column for column, _, _ in columns))
    return Table("Evaluation (%)", header, tuple(rows), tuple(_notes(results)), _HEADLINE)


def _cell(scores: Mapping[str, float], key: str, factor: float = 100, digits: int = 2) -> str:
    return f"{factor * scores[key]:.{digits}f}" if key in scores else NONE


def _notes(results: Sequence[Summary]) -> list[str]:
    """The numbers of images and classes behind the scores, and the rules of mIoU and AP."""
    notes = [
        f"{r['data']}: {r['images']} images, {r['left_out']} skipped (damaged or without labels); "
        + "; ".join(_averaged(r))
        + "."
        for r in results
    ]
    if any(r["groups"] for r in results):
        notes.append("Base classes share a name with a training class; novel classes do not.")
        notes.append("Harmonic: 2 S U / (S + U) of base and novel; of mIoU, it is hIoU.")
    rules = dict.fromkeys(r["instances"]["note"] for r in results if r["instances"])
    return ["In percent.", *notes, *_miou_rule(results), *rules]


def _miou_rule(results: Sequence[Summary]) -> list[str]:
    """The classes that mIoU averages, and its value by the rule of published numbers if that differs."""
    measured = [r for r in results if r["semantic"]]
    rule = "mIoU is the mean over the classes in the truth."
    return ([rule] if measured else []) + [
        f"{r['data']}: if classes that are predicted but absent from the truth ({number}) count as 0, as in "
        f"published numbers, mIoU is {_cell(r['semantic'], 'miou_published')}."
        for r in measured
        if (number := r["semantic"].get("only_predicted"))
    ]


def _averaged(result: Summary) -> list[str]:
    """How many classes each score averages."""
    parts = {
        "PQ": result["panoptic"] and result["panoptic"]["all"],
        "mAP": result["instances"],
        "mIoU": result["semantic"],
    }
    total = len(result["per_class"])
    return [f"{name} is averaged over {p['classes']} of {total} classes" for name, p in parts.items() if p]
