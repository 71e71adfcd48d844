"""What evaluate.py and train.py understand beyond Hydra's own grammar. Imports no torch.

Choices of a group are files in ``conf/``. Here ``data=`` takes shard sets too, alone or beside named data
sets, and ``vocabulary=`` takes names and files. Paths are data, whatever their characters.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

_WORDS = re.compile(r"[^\w.-]+")
_CHOICE = re.compile(r"[a-z_][\w-]*", re.A | re.I)
# Options whose value is a path or a name, also where Hydra would read a number, a list or a sweep.
_PATHS = re.compile(
    r"\+{0,2}(ckpt|init_from|predictions|save_predictions|run|run_dir|hydra\.(run|sweep)\.dir|data\.train"
    r"|data\.val(\.[^.]+)?|paths\.\w+|vocabulary\.\w+|\w+\.(weights|vocabulary))"
)
_FOREIGN = re.compile(r"""[^\w\s/\\+.$*@?|'"(){}\[\]:=,-]|[^\x20-\x7e]""", re.A)  # to Hydra's grammar; and %
_QUOTED = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_ITEM = re.compile(rf"\s*({_QUOTED}|(?:\\.|[^,\\])*?)\s*(?:,|$)", re.S)
_KEY = re.compile(rf"([{{,]\s*)({_QUOTED}|[^\s:,{{}}'\"\[\]]+)(?=\s*:)|{_QUOTED}")
_PLAIN_KEY = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_%][\w.%-]*", re.A | re.I)


def expand(arguments: Sequence[str], conf: Path) -> list[str]:
    """The command line in Hydra's own grammar.

    ``data=[coco,DIR]`` becomes ``data=[coco]`` and ``data.val`` with ``DIR`` under the name of its folder;
    ``vocabulary=[dog,cat]`` or ``vocabulary=FILE`` becomes ``vocabulary.eval``. A run of several data sets
    that has no name is called after none of them. What Hydra cannot read is quoted, and so are paths that it
    would take for something else. Everything else stays as it is, and so does a command line that was
    expanded before.

    Args:
        arguments: without the program's name.
        conf: folder of the groups.
    """
    expanded: list[str] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key.startswith("-"):
            expanded.append(argument)
        elif key == "data":
            items = _items(text, _choices(conf, "data"))
            expanded += _data(argument, items, _choices(conf, "data"))
            if len(items) > 1 and not any(a.startswith(("run=", "hydra.run.dir=")) for a in arguments):
                expanded.append("run=${hydra:runtime.choices.model}_benchmarks")
        elif key == "vocabulary" and text not in _choices(conf, "vocabulary"):
            expanded.append(_readable("vocabulary.eval", text))
        else:
            expanded.append(_readable(key, text))
    return expanded


def _choices(conf: Path, group: str) -> set[str]:
    return {path.stem for path in (conf / group).glob("*.yaml")}


def _items(text: str, choices: set[str]) -> list[str]:
    """The data sets and places that ``data=`` names; none for a sweep and for what cannot be read."""
    if text in choices or _exists(text):
        return [text]
    if text.startswith("["):
        tokens = [match[1] for match in _ITEM.finditer(text[1:-1])] if text.endswith("]") else []
        return [_text(token) for token in tokens if token]
    override = _parsed(_encoded(text))
    return [] if not text or (override is not None and override.is_sweep_override()) else [_text(text)]


def _text(token: str) -> str:
    """What Hydra takes a token for if that is text, else the token."""
    override = _parsed(_encoded(token))
    value = None if override is None else override.value()
    return unquote(value) if isinstance(value, str) else token


def _parsed(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        return None


def _encoded(text: str) -> str:
    """Text in characters that Hydra's grammar has, for ``unquote``."""
    return _FOREIGN.sub(lambda found: quote(found[0], safe=""), text)


def _data(argument: str, items: Sequence[str], choices: set[str]) -> list[str]:
    paths = [item for item in items if item not in choices and _is_place(item)]
    if not paths:
        single = [f"data={item}" for item in items if argument == f"data=[{item}]"]
        return single or [argument]
    names = [item for item in items if item not in paths]
    taken = list(names)
    for path in paths:
        taken.append(_name(path, taken))
    pairs = zip(taken[len(names) :], paths, strict=True)
    sets = ",".join(f"{_key(name)}:{quoted(_literal(path))}" for name, path in pairs)
    group = f"[{','.join(names)}]" if len(names) > 1 else "".join(names) or "shards"
    return [f"data={group}", f"++data.val={{{sets}}}"]


def _is_place(item: str) -> bool:
    return not _CHOICE.fullmatch(item) or _exists(item)


def _name(path: str, taken: Sequence[str]) -> str:
    """The last folder of a path or URL, and a number if it is taken; case and Unicode's form do not count."""
    folder = path.replace("/dataset.json", "").rstrip("/ -").rpartition("/")[2]
    name = _WORDS.sub("_", unicodedata.normalize("NFC", folder)).strip("_.") or "val"
    names = (name, *(f"{name}_{number}" for number in range(2, len(taken) + 2)))
    return next(n for n in names if n.casefold() not in {other.casefold() for other in taken})


def _key(name: str) -> str:
    """A name as a key that Hydra reads as text; ``eval_sets`` undoes it."""
    key = name if _PLAIN_KEY.fullmatch(name) else quote(name, safe="")
    return key if _PLAIN_KEY.fullmatch(key) else f"%{ord(key[0]):02X}{key[1:]}"


def _readable(key: str, text: str) -> str:
    """An option that Hydra reads, and takes for a path where it is one."""
    own = re.fullmatch(r"(\+{0,2}data\.val)\.(.*[^\w.$-].*)", key, re.A)
    if own is not None:
        return f"++data.val={{{_key(own[2])}:{_readable('data.val', text).partition('=')[2]}}}"
    if key.lstrip("+") == "data.val" and text.startswith("{"):
        text = _KEY.sub(
            lambda found: found[0] if found[1] is None else found[1] + _key(_text(found[2])), text
        )
    override = _parsed(text)
    value = None if override is None else override.value()
    lines = len(text.splitlines()) > 1 and text[0] not in "'\""
    path = _literal(text)
    if _PATHS.fullmatch(key) and value != path and (_exists(text) or lines or isinstance(value, int | float)):
        return f"{key}={quoted(path)}"
    if override is not None:
        return f"{key}={text}"
    override = _parsed(_encoded(text))
    if override is not None:
        return f"{key}={_emitted(override.value())}"
    return f"{key}={text if text[0] in '[{' else quoted(text)}"


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110  Path's fails for what is too long for a path


def _literal(path: str) -> str:
    """A path for OmegaConf, which takes ``${...}`` for a reference."""
    return path.replace("${", r"\${") if _exists(path) else path


def _emitted(value: Any) -> str:
    """What was read from encoded text, for Hydra's grammar."""
    if isinstance(value, str):
        return quoted(unquote(value))
    if isinstance(value, ChoiceSweep):
        return ",".join(map(_emitted, value.list))
    if isinstance(value, list):
        return f"[{','.join(map(_emitted, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_key(unquote(str(key)))}:{_emitted(one)}' for key, one in value.items())}}}"
    return "null" if value is None else str(value)


def quoted(text: str) -> str:
    """A value as Hydra's grammar takes it, whatever its characters."""
    return QuotedString(text, Quote.single).with_quotes()
