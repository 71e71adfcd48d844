"""Rows of a table compared over seeds: means with intervals, differences paired by seed. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from odise_pl.metrics.tables import NONE, Table
from odise_pl.runs.published import STANDS_FOR, Published

SCORES = {
    "pq": "PQ",
    "pq_base": "base PQ",
    "pq_novel": "novel PQ",
    "map": "mAP",
    "map_base": "base mAP",
    "map_novel": "novel mAP",
    "miou": "mIoU",
    "miou_base": "base mIoU",
    "miou_novel": "novel mIoU",
    "miou_harmonic": "hIoU",
}
_PAPER = {
    "coco": "paper: COCO PQ",
    "ade20k": "paper: ADE20K PQ",
    "coco_miou": "paper: COCO mIoU",
    "ade20k_miou": "paper: ADE20K mIoU",
}
_DECIDED = "decided"
_NOT_DECIDED = "not decided"
_LEVEL = 0.95
_DECIMALS = 4  # of written values


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval (Student's t), which a single value does not have."""

    mean: float
    half: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Of independent values; None without any."""
        n = len(values)
        if n < 2:
            return cls(values[0]) if values else None
        return cls(fmean(values), float(student.ppf((1 + _LEVEL) / 2, n - 1)) * stdev(values) / sqrt(n))

    def text(self, sign: str = "") -> str:
        """Mean ± half width; ``sign`` is Python's option of formats."""
        return f"{self.mean:{sign}.1f}" + ("" if self.half is None else f" ± {self.half:.1f}")

    def decision(self) -> str:
        """Of a difference: whether its interval excludes 0."""
        if self.half is None:
            return NONE
        return _DECIDED if abs(self.mean) > self.half else _NOT_DECIDED


@dataclass(frozen=True)
class Row:
    """Scores of the same settings with several seeds.

    Attributes:
        name: of the row, unique in its table.
        reference: name of the row that it is compared with; None, or its own name, if there is none.
        paper: the published numbers of these settings.
        scores: percentages by column (``SET.SCORE``, a score of :data:`SCORES`) and seed; what stands for a
            seed that is not known is in no other row.
    """

    name: str
    reference: str | None
    paper: Published | None
    scores: Mapping[str, Mapping[int | str, float]]

    @property
    def seeds(self) -> list[int | str]:
        """All seeds of the row."""
        return list(dict.fromkeys(seed for by in self.scores.values() for seed in by))

    def estimate(self, column: str) -> Estimate | None:
        """The mean over seeds; None if the column was not measured."""
        return Estimate.of([*self.scores.get(column, {}).values()])

    def minus(self, other: Row, column: str) -> Estimate | None:
        """The mean difference over the seeds that both rows have; None without any."""
        ours, theirs = self.scores.get(column, {}), other.scores.get(column, {})
        return Estimate.of([value - theirs[seed] for seed, value in ours.items() if seed in theirs])


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The measured columns: sets in the order of the rows, their scores in the order of :data:`SCORES`."""
    measured = dict.fromkeys(column for row in rows for column in row.scores)
    sets = dict.fromkeys(column.rpartition(".")[0] for column in measured)
    return [f"{name}.{score}" for name in sets for score in SCORES if f"{name}.{score}" in measured]


def _of_kind(columns: Sequence[str], kind: str) -> list[str]:
    return [column for column in columns if column.rpartition(".")[2].startswith(kind)]


def column_title(column: str) -> str:
    """``toy_open.pq_base`` as ``toy_open base PQ``."""
    name, _, score = column.rpartition(".")
    return f"{name} {SCORES[score]}"


def score_table(
    title: str, rows: Sequence[Row], more: Mapping[str, Sequence[str]] | None = None, kind: str = ""
) -> Table:
    """Means with their intervals beside the paper's numbers, and notes on the order of the rows.

    Args:
        title: of the table.
        rows: of the table.
        more: cells of further columns, by their names.
        kind: what the names of the shown :data:`SCORES` start with: ``pq``, ``map`` or ``miou``; rows without
            any are skipped. Empty: all scores, all rows.
    """
    columns, more = _of_kind(columns_of(rows), kind), more or {}
    paper = [
        field
        for field, name in _PAPER.items()
        if name.lower().endswith(kind) and any(row.paper and getattr(row.paper, field) for row in rows)
    ]
    header = (title, *more, *(_PAPER[field] for field in paper), *map(column_title, columns), "seeds")
    cells = []
    for i, row in enumerate(rows):
        if kind and not any(column in row.scores for column in columns):
            continue
        known = [row.paper and getattr(row.paper, field) for field in paper]
        published = [NONE if x is None else f"{x:.1f}" for x in known]
        scores = [e.text() if (e := row.estimate(column)) else NONE for column in columns]
        cells.append((row.name, *(more[key][i] for key in more), *published, *scores, str(len(row.seeds))))
    return Table(title, header, tuple(cells), tuple(_orders(rows, columns)))


def difference_table(title: str, rows: Sequence[Row], kind: str = "pq") -> Table:
    """Differences to the reference of each row, with their intervals, and whether they are decided.

    ``kind`` is what the names of the compared :data:`SCORES` start with; rows without any are skipped.
    """
    columns = _of_kind(columns_of(rows), kind)
    titles = map(column_title, columns)
    header = (title, "minus", *(name for one in titles for name in (one, f"{one} {_DECIDED}")))
    by_name = {row.name: row for row in rows}
    cells = []
    for row in rows:
        if row.reference in by_name and row.reference != row.name:
            found = [row.minus(by_name[row.reference], column) for column in columns]
            if not any(found):
                continue
            scores = [cell for d in found for cell in ((d.text("+"), d.decision()) if d else (NONE, NONE))]
            cells.append((row.name, row.reference, *scores))
    return Table(f"{title}, differences", header, tuple(cells))


def _orders(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The orders of the rows, ours and the paper's, of each set that stands for one of the paper's."""
    lines = []
    for name, field in STANDS_FOR.items():
        column = f"{name}.pq"
        known = {row.name: row.paper and getattr(row.paper, field) for row in rows if row.estimate(column)}
        paper = {row: value for row, value in known.items() if value is not None}
        if column in columns and len(paper) > 1:
            lines.append(_order(field.upper(), name, paper, [row for row in rows if row.name in paper]))
    return lines


def _order(theirs: str, ours: str, paper: Mapping[str, float], rows: Sequence[Row]) -> str:
    column = f"{ours}.pq"
    means = {row.name: fmean(row.scores[column].values()) for row in rows}
    text = f"* By PQ on {theirs}, paper: {_ranking(paper)}; on {ours}: {_ranking(means)}"
    pairs = [(a, b) for a, b in combinations(rows, 2) if paper[a.name] != paper[b.name]]
    wrong = [
        a.minus(b, column)
        for a, b in pairs
        if (paper[a.name] - paper[b.name]) * (means[a.name] - means[b.name]) <= 0
    ]
    if not wrong:
        return f"{text}, as in the paper"
    decided = sum(gap is not None and gap.decision() == _DECIDED for gap in wrong)
    return f"{text}. Not the paper's order: {len(wrong)} of {len(pairs)} pairs differ, {decided} decided"


def _ranking(values: Mapping[str, float]) -> str:
    """Names from the best to the worst; ``=`` stands between equal values."""
    best = sorted(values, key=lambda name: -values[name])
    signs = (" = " if values[a] == values[b] else " > " for a, b in pairwise(best))
    return best[0] + "".join(sign + name for sign, name in zip(signs, best[1:], strict=True))


def as_json(tables: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Plain values of tables: ``runs`` has the values of ``seeds``, each column their mean and deviation."""
    return {
        title: {
            "rows": [
                {
                    "name": row.name,
                    "reference": row.reference,
                    "paper": row.paper and row.paper._asdict(),
                    "seeds": row.seeds,
                    **{column: _spread(by.values()) for column, by in row.scores.items()},
                    "runs": {
                        column: [_rounded(by.get(seed)) for seed in row.seeds]
                        for column, by in row.scores.items()
                    },
                }
                for row in rows
            ]
        }
        for title, rows in tables.items()
    }


def _spread(values: Iterable[float]) -> list[float | None]:
    written = [round(value, _DECIMALS) for value in values]
    return [_rounded(fmean(written)), _rounded(stdev(written) if len(written) > 1 else None)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)


def from_json(table: Mapping[str, Any]) -> list[Row]:
    """The rows of a table that :func:`as_json` wrote."""
    return [
        Row(
            row["name"],
            row["reference"],
            row["paper"] and Published(**row["paper"]),
            {
                column: {s: v for s, v in zip(row["seeds"], values, strict=True) if v is not None}
                for column, values in row["runs"].items()
            },
        )
        for row in table["rows"]
    ]
