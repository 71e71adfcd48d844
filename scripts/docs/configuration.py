"""docs/configuration.md, from the YAML files in conf/ and the docstrings of what their ``_target_`` names.

A key's meaning is its comment in the YAML file, above or beside it, else its entry in the docstring.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import griffe
import yaml

from scripts.docs.docstrings import replace_roles, split_names

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
INTRODUCTION = Path(__file__).with_name("configuration_introduction.md")
# group: the file with its keys, where that is not the default choice's
GROUPS = {
    "model": "", "backbone": "", "clip": "", "captioner": "", "classifier": "", "data": "loading/default",
    "split": "", "vocabulary": "", "optimizer": "", "trainer": "", "callbacks": "", "logger": "",
    "experiment": "", "hydra/launcher": "hydra/launcher/slurm",
}  # fmt: skip
NOTES = {
    "data": "All choices have these keys, from `conf/loading/default.yaml`.",
    "split": "See [Methods](methods.md#zero-shot-protocols). Your own: `'+data.unseen=[sofa,train]'`.",
    "experiment": "Experiments set keys of other groups. Two at once: `experiment=[toy,ablation_timestep]`.",
    "hydra/launcher": "Without a choice, the runs of a sweep follow each other on this machine.",
}


@dataclass(frozen=True)
class Entry:
    """A key of a file: its path in the configuration, its value as written, what it means.

    ``value`` is empty for a mapping; ``target`` is the class or function that takes the key.
    """

    key: str
    value: str
    comment: str
    target: str

    @cached_property
    def meaning(self) -> str:
        """From the YAML file, else from the docstring; empty if neither has any."""
        return self.comment or arguments(self.target).get(self.key.rpartition(".")[2], ("", ""))[1]


class ConfigFile:
    """A file of conf/.

    Args:
        name: path below conf/ without suffix.
    """

    def __init__(self, name: str) -> None:
        self.name, self.group = name, name.rpartition("/")[0]
        self._text = (ROOT / "conf" / f"{name}.yaml").read_text(encoding="utf-8")
        self._lines = self._text.splitlines()
        count = next(i for i, line in enumerate([*self._lines, ""]) if not line.startswith("#"))
        header = [line.lstrip("# ") for line in self._lines[:count]]
        self._lines[:count] = [""] * count  # the comment of the file is not that of its first key
        package = next((line.split()[1] for line in header if line.startswith("@package")), None)
        self.summary = " ".join(line for line in header if not line.startswith("@package"))
        self.package = {None: self.group.replace("/", "."), "_global_": ""}.get(package, package or "")
        self._root = yaml.compose(self._text)
        settings = yaml.safe_load(self._text)
        self.defaults: list[str | dict[str, str]] = settings.get("defaults", [])
        self.target = settings.get("_target_", "")

    @cached_property
    def entries(self) -> list[Entry]:
        """All keys in the order of the file, without ``defaults`` and ``_target_``."""
        return list(self._walk(self._root, self.package))

    def _walk(self, node: yaml.MappingNode, prefix: str) -> Iterator[Entry]:
        pairs = {key.value: (key, value) for key, value in node.value}
        target = pairs["_target_"][1].value if "_target_" in pairs else ""
        if prefix and list(pairs) == ["_target_"]:
            for name, (default, meaning) in arguments(target).items():
                yield Entry(f"{prefix}.{name}", default, meaning, target)
        for name, (key, value) in pairs.items():
            if name == "_target_" or (node is self._root and name == "defaults"):
                continue
            path = f"{prefix}.{name}".lstrip(".")
            nested = isinstance(value, yaml.MappingNode) and not value.flow_style
            end = key.end_mark if nested else value.end_mark
            text = "" if nested else self._text[value.start_mark.index : value.end_mark.index]
            entry = Entry(path, text, self._comment(key.start_mark, end), target)
            if nested:
                yield from self._mapping(path, value, entry.comment)
            else:
                yield entry

    def _mapping(self, path: str, node: yaml.MappingNode, comment: str) -> Iterator[Entry]:
        made_by = next((value.value for key, value in node.value if key.value == "_target_"), "")
        if comment or made_by:
            yield Entry(path, made_by.rpartition(".")[2], comment or summary(made_by), "")
        yield from self._walk(node, path)

    def _comment(self, start: yaml.Mark, end: yaml.Mark) -> str:
        beside = self._lines[end.line][end.column :].lstrip(": ")
        lines = [beside] if beside.startswith("#") else []
        above = start.line - 1
        while above >= 0 and self._lines[above].startswith(" " * start.column + "#"):
            lines.insert(0, self._lines[above])
            above -= 1
        return " ".join(line.strip(" #") for line in lines)


@cache
def package() -> griffe.Module:
    """The package, read without importing it."""
    return griffe.load("odise_pl", search_paths=[ROOT])  # type: ignore[return-value]


def find(target: str) -> griffe.Class | griffe.Function | None:
    """The class or function of a ``_target_``, if it is in the package."""
    if not target.startswith("odise_pl."):
        return None
    item = package()[target.removeprefix("odise_pl.")]
    return item.final_target if item.is_alias else item


def summary(target: str) -> str:
    """First paragraph of a docstring."""
    item = find(target)
    text = item.docstring.value.split("\n\n")[0] if item and item.docstring else ""
    return " ".join(replace_roles(text).split())


@cache
def arguments(target: str) -> dict[str, tuple[str, str]]:
    """Default and meaning of the documented arguments of a class or function of the package."""
    item = find(target)
    if item is None:
        return {}
    bases = item.mro() if isinstance(item, griffe.Class) else []
    meanings = {name: text for one in [*reversed(bases), item] for name, text in _documented(one)}
    defaults = {p.name: _default(item, p.default) for p in item.parameters}
    return {name: (default, meanings[name]) for name, default in defaults.items() if name in meanings}


def _documented(item: griffe.Class | griffe.Function) -> Iterator[tuple[str, str]]:
    """Names and meanings of the arguments in a docstring."""
    if item.docstring is None:
        return
    docstring = griffe.Docstring(split_names(item.docstring.value), parent=item)
    for section in docstring.parse("google", warnings=False):
        if section.kind.value in ("parameters", "attributes"):
            for argument in section.value:
                yield argument.name, " ".join(replace_roles(argument.description).split())


def _default(item: griffe.Object, default: object) -> str:
    """A default as YAML; names of constants are replaced by their values."""
    text = re.sub(r"\b[A-Z_]+\b", lambda match: _constant(item, match[0]), str(default)).strip("'\"")
    words = {"True": "true", "False": "false", "None": "null"}
    return words.get(text, text.translate(str.maketrans("()", "[]")))


def _constant(item: griffe.Object, name: str) -> str:
    found = package()[item.resolve(name).removeprefix("odise_pl.")]
    return _default(found, found.value).replace("_", "")


def prose(text: str) -> str:
    """A comment as a cell of a table: commands and settings as code, no full stop."""
    if "`" not in text:
        text = re.sub(
            r"(?:odise|python|tensorboard) .+?(?=$| \.\.\.|\. )|\+*[a-z][\w./]*=[\w.\[\]]+\b\]?|\{[A-Z].+?\}",
            r"`\g<0>`",
            text,
        )
    return text.replace("|", "\\|").removesuffix(".")


def _code(text: str) -> str:
    return f"`{' '.join(text.split())}`".replace("|", "\\|") if text else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table without the columns that are empty."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row[i] for i in kept)} |"
    yield ""


def keys_of(file: ConfigFile) -> Iterator[str]:
    """The table of all keys of a file."""
    if file.target:
        yield f"Settings of `{file.target}`:"
        yield ""
    yield from key_table(file.entries)


def key_table(entries: Sequence[Entry]) -> Iterator[str]:
    """A table of keys."""
    rows = [(_code(e.key), _code(e.value), prose(e.meaning)) for e in entries]
    yield from table(("key", "default", "meaning"), rows)


def changes_of(file: ConfigFile, known: dict[str, Entry]) -> list[tuple[str, str, str]]:
    """What another choice of a group sets: key, value, and the meaning if ``known`` lacks the key."""
    chosen = [pair for item in file.defaults if isinstance(item, dict) for pair in item.items()]
    rows = [(_group(group, file.group), choice, "") for group, choice in chosen]
    for entry in file.entries:
        same = known.get(entry.key)
        if entry.value and not (same and same.value == entry.value):
            own = entry.comment if entry.comment != getattr(same, "comment", "") else ""
            rows.append((entry.key, entry.value, own if same else entry.meaning))
    return rows


def _group(name: str, inside: str) -> str:
    """A group of a list of defaults as on the command line."""
    group, _, package = name.removeprefix("override ").removeprefix("/").partition("@")
    if not package or package.startswith("_global_"):
        return group
    absolute = name.startswith("override ")  # below a package of its own, which is the whole configuration
    return f"{group}@{package}" if absolute else f"{group}@{inside}.{package}"


def files() -> list[ConfigFile]:
    """All files of conf/."""
    conf = ROOT / "conf"
    return [ConfigFile(str(p.relative_to(conf).with_suffix(""))) for p in sorted(conf.rglob("*.yaml"))]


def page(conf: Sequence[ConfigFile]) -> str:
    """The page.

    Raises:
        SystemExit: a key has no meaning; names it and its file.
    """
    by_name = {file.name: file for file in conf}
    tops = [by_name[name] for name in ("train", "evaluate", "shared")]
    defaults = {
        group: choice
        for top in tops
        for item in top.defaults
        if isinstance(item, dict)
        for group, choice in item.items()
    }
    every = {entry.key: entry for file in conf for entry in file.entries if entry.meaning}
    missing = [
        f"conf/{file.name}.yaml: {entry.key}"
        for file in conf
        for entry in file.entries
        if entry.key not in every and not entry.key.startswith("data.val.")
    ]
    if missing:
        sys.exit("explain these keys, in a comment or in the docstring: " + "; ".join(missing))
    of_groups = {
        entry.key: replace(entry, value="")  # an experiment shows all that it sets
        for file in conf
        if file.group != "experiment"
        for entry in file.entries
    }
    of_hydra = [entry for entry in tops[2].entries if entry.key.startswith("hydra.")]
    of_both = [entry for entry in tops[2].entries if entry not in of_hydra]
    links = " · ".join(f"[{group}](#{group.replace('/', '')})" for group in (*GROUPS, "hydra"))
    lines = [INTRODUCTION.read_text(encoding="utf-8").rstrip(), "", "## Groups", ""]
    lines += [f"[Top level](#top-level) · {links}", ""]
    lines += ["## Top level", "", "Of `train.py` and `evaluate.py`:", "", *key_table(of_both)]
    lines += ["Of `train.py`:", "", *key_table(tops[0].entries)]
    lines += ["Of `evaluate.py`:", "", *key_table(tops[1].entries)]
    for group, keys in GROUPS.items():
        choices = [file for file in conf if file.group == group]
        lines += [*section(group, choices, by_name.get(keys), defaults.get(group), of_groups)]
    lines += [
        "## hydra",
        "",
        "Where runs lie and how the runs of a sweep are named:",
        "",
        *key_table(of_hydra),
    ]
    return "\n".join(lines).rstrip() + "\n"


def section(
    group: str,
    choices: Sequence[ConfigFile],
    keys: ConfigFile | None,
    default: str | None,
    others: dict[str, Entry],
) -> Iterator[str]:
    """A group: its choices, the keys of the default one, and what the others set."""
    yield from [f"## {group}", ""]
    names = {file.name.rpartition("/")[2]: file for file in choices}
    shown = keys or names.get(default or "")
    known = {entry.key: entry for entry in shown.entries} if shown else others
    changes = {name: [] if file is shown else changes_of(file, known) for name, file in names.items()}
    short = {name for name, rows in changes.items() if len(rows) < 3 and not any(row[2] for row in rows)}
    order = sorted(names, key=lambda name: name != default)
    rows = []
    for name in order:
        sets = ", ".join(_code(f"{key}={value}") for key, value, _ in changes[name]) if name in short else ""
        rows.append(
            (_code(name) + (" (default)" if name == default else ""), prose(names[name].summary), sets)
        )
    yield from table(("choice", "what it is", "what it sets"), rows)
    if group in NOTES:
        yield from [NOTES[group], ""]
    if shown:
        yield from keys_of(shown)
    for name in order:
        if name not in short:
            bases = [item for item in names[name].defaults if isinstance(item, str) and item != "_self_"]
            yield from [f"**`{name}`**" + "".join(f", on top of `{base}`" for base in bases) + ":", ""]
            rows = [(_code(key), _code(value), prose(meaning)) for key, value, meaning in changes[name]]
            yield from table(("key", "value", "meaning"), rows)


def main() -> None:
    """Write the page, or with ``--check`` compare it."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is out of date")
    check, text = parser.parse_args().check, page(files())
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/configuration.md is out of date: python -m scripts.docs.configuration")


if __name__ == "__main__":
    main()
