"""The evaluation sets that a configuration names. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def parse_eval_sets(val: str | Mapping[Any, str] | None) -> dict[str, str]:
    """Folder, ``dataset.json`` or URL of each evaluation set by name; a single set is called "val"."""
    sets = val if isinstance(val, Mapping) else {} if val is None else {"val": val}
    return {str(name): str(source) for name, source in sets.items()}
