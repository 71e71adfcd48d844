"""The evaluation sets that a configuration names. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odise_pl.data.records import DataError


def parse_eval_sets(val: str | Mapping[Any, str] | None) -> dict[str, str]:
    """Folder, ``dataset.json`` or URL of each evaluation set by name; a single set is called "val".

    Raises:
        DataError: a set is not given as a plain string.
    """
    sets = val if isinstance(val, Mapping) else {} if val is None else {"val": val}
    for name, source in sets.items():
        if isinstance(source, Mapping):
            raise DataError(f"data.val.{name} is {source}; give only the folder or URL of a shard set")
    return {str(name): str(source) for name, source in sets.items()}
