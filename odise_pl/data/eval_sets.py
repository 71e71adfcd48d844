"""The evaluation sets that a configuration names. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import unquote

from odise_pl.data.records import DataError


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set.

    Attributes:
        shards: its folder, ``dataset.json`` or URL.
        vocabulary: names that its classes are called by, see ``load_vocabulary``; None: its own.
        short_side: wanted shorter side of its images; None: that of all sets.
        long_side: limit of the longer side; None: that of all sets.
    """

    shards: str
    vocabulary: Any = None
    short_side: int | None = None
    long_side: int | None = None


def eval_sets(val: str | Mapping[str, Any] | None) -> dict[str, EvalSet]:
    """Evaluation sets by name: none, one that has none, or several.

    Names may have characters as in URLs, ``m%C3%BCnchen``: Hydra's grammar knows no others.

    Raises:
        DataError: a set has other fields than :class:`EvalSet`, or no shards.
    """
    if val is None:
        return {}
    sets = by_set(val if isinstance(val, Mapping) else {"val": str(val)})
    return {name: _eval_set(name, value) for name, value in sets.items()}


def by_set(values: Any) -> Any:
    """Settings by the names of their sets; anything else as it is."""
    return {unquote(str(n)): v for n, v in values.items()} if isinstance(values, Mapping) else values


def _eval_set(name: str, value: Any) -> EvalSet:
    if not isinstance(value, Mapping):
        return EvalSet(str(value))
    known = {field.name for field in fields(EvalSet)}
    if not value.get("shards") or set(value) - known:
        raise DataError(
            f"data.val.{name} has {', '.join(value)}: give it shards=DIR and some of "
            f"{', '.join(sorted(known - {'shards'}))}"
        )
    for side in ("short_side", "long_side"):
        if value.get(side) is not None and (type(value[side]) is not int or value[side] < 1):
            raise DataError(f"data.val.{name}.{side}={value[side]} must be a whole number, 1 or more")
    return EvalSet(**{str(key): field for key, field in value.items()})
