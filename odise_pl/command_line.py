"""What evaluate.py and train.py understand beyond Hydra's own grammar. Imports no torch.

Choices of a group are files in ``conf/``. Here ``data=`` takes shard sets too, alone or beside named data
sets, and ``vocabulary=`` takes names and files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

_WORDS = re.compile(r"[^\w-]+")


def expand(arguments: Sequence[str], conf: Path) -> list[str]:
    """The command line in Hydra's own grammar.

    ``data=[coco,DIR]`` becomes ``data=[coco]`` and ``data.val`` with ``DIR`` under the name of its folder;
    ``vocabulary=[dog,cat]`` or ``vocabulary=FILE`` becomes ``vocabulary.eval``. A run of several data sets
    that has no name is called after none of them. Everything else stays as it is, and so does a command line
    that was expanded before.

    Args:
        arguments: without the program's name.
        conf: folder of the groups.
    """
    expanded: list[str] = []
    for argument in arguments:
        override = _parsed(argument)
        if override is None:
            expanded.append(argument)
        elif override.key_or_group == "data":
            expanded += _data(argument, override, conf)
            if len(_items(override)) > 1 and not any(
                a.startswith(("run=", "hydra.run.dir=")) for a in arguments
            ):
                expanded.append("run=${hydra:runtime.choices.model}_benchmarks")
        else:
            expanded += _vocabulary(argument, override, conf)
    return expanded


def _parsed(argument: str) -> Override | None:
    """An override of one of the two groups by one value or a list."""
    if not argument.startswith(("data=", "vocabulary=")):
        return None
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return None  # Hydra says what is wrong
    return None if override.is_sweep_override() else override


def _items(override: Override) -> list[str]:
    value = override.value()
    return [_text(item) for item in (value if isinstance(value, list) else [value])]


def _text(item: Any) -> str:
    return item.text if isinstance(item, QuotedString) else str(item)


def _choices(conf: Path, group: str) -> set[str]:
    return {path.stem for path in (conf / group).glob("*.yaml")}


def _data(argument: str, override: Override, conf: Path) -> list[str]:
    items, choices = _items(override), _choices(conf, "data")
    paths = [item for item in items if item not in choices and _is_place(item)]
    if not paths:
        single = [f"data={item}" for item in items if argument == f"data=[{item}]"]
        return single or [argument]
    names = [item for item in items if item not in paths]
    taken = list(names)
    for path in paths:
        taken.append(_name(path, taken))
    sets = ",".join(f"{name}:{quoted(path)}" for name, path in zip(taken[len(names) :], paths, strict=True))
    group = f"[{','.join(names)}]" if len(names) > 1 else "".join(names) or "shards"
    return [f"data={group}", f"++data.val={{{sets}}}"]


def _is_place(item: str) -> bool:
    return "/" in item or ":" in item or Path(item).exists()


def _name(path: str, taken: Sequence[str]) -> str:
    """The last folder of a path or URL, and a number if it is taken."""
    folder = path.replace("/dataset.json", "").rstrip("/ -").rpartition("/")[2]
    name = _WORDS.sub("_", folder).strip("_") or "val"
    number = sum(name == other or other.startswith(f"{name}_") for other in taken)
    return f"{name}_{number + 1}" if name in taken else name


def _vocabulary(argument: str, override: Override, conf: Path) -> list[str]:
    value = override.value()
    if not isinstance(value, list) and _text(value) in _choices(conf, "vocabulary"):
        return [argument]
    return [f"vocabulary.eval={argument.partition('=')[2]}"]


def quoted(text: str) -> str:
    """A value as Hydra's grammar takes it, whatever its characters."""
    return QuotedString(text, Quote.single).with_quotes()
