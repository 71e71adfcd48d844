"""Fill the figures of the documentation from docs/figures: ``python -m scripts.docs.numbers [--check]``.

``<!-- n:KEY -->`` ... ``<!-- /n -->`` holds one number. KEY is FILE and the path in FILE.json, with dots.
Named rows are addressed by their names; the levels "tables" and "rows" are not written. An integer is written
as it is, other numbers with one decimal, [mean, deviation] as mean ± deviation (KEY.mean and KEY.std are its
parts). ``KEY:.2f`` formats as Python does. ``<!-- table:NAME -->`` ... ``<!-- /table -->`` holds a table of
scripts/docs/tables.py. Fenced code stays as it is.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.docs.tables import TABLES

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "odise_pl/toyworld/weights/README.md")
_TEXT = r"(?P<text>(?:(?!<!--).)*?)"
_MARKED = re.compile(rf"<!-- (?P<kind>n|table):(?P<key>[^>]+?) -->{_TEXT}<!-- /(?P=kind) -->", re.DOTALL)
_FENCED = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)
_OPEN = re.compile(r"<!-- (?:n|table):[^>]+-->|<!-- /(?:n|table) -->")
_BLOCK = re.compile(r"^[ >]*(?:[-*+] |\d+\. )?<!-- n:[^>]+-->", re.MULTILINE)
_UNNAMED = ("tables", "rows")


def load_figures(folder: Path) -> dict[str, Any]:
    """The content of each JSON file, by its name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every figure with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flatten(inner, key if name in _UNNAMED else f"{key}.{name}" if key else name)
    elif isinstance(value, list) and all(isinstance(row, dict) for row in value):
        yield from flatten({row["name"]: row for row in value}, key)
    elif isinstance(value, list) and len(value) == 2:
        yield from ((key, value), (f"{key}.mean", value[0]), (f"{key}.std", value[1]))
    elif not isinstance(value, list):
        yield key, value


def write_number(value: Any, form: str) -> str:
    """A figure as text; ``form`` is a format of Python's, or empty."""
    if isinstance(value, list):
        return " ± ".join(write_number(part, form) for part in value)
    return format(value, form or (".1f" if isinstance(value, float) else ""))


class Filler:
    """Replaces what stands between markers, and collects the keys that differ and the faults."""

    def __init__(self, files: dict[str, Any]) -> None:
        self._files, self._numbers = files, dict(flatten(files))
        self.differ: list[str] = []
        self.faults: list[str] = []

    def fill(self, page: str, text: str) -> str:
        """The text of a page with the figures of today."""
        parts = _FENCED.split(text)
        for i in range(0, len(parts), 2):  # odd ones are code
            for start in _BLOCK.findall(parts[i]):
                self.faults.append(
                    f"{page}: {start.strip()} starts a line, which makes the line a block of HTML"
                )
            for stray in _OPEN.findall(_MARKED.sub("", parts[i])):
                self.faults.append(f"{page}: {stray} has no partner")
            parts[i] = _MARKED.sub(lambda match: self._replace(page, match), parts[i])
        return "".join(parts)

    def _replace(self, page: str, match: re.Match[str]) -> str:
        kind, key, old = match["kind"], match["key"], match["text"]
        name, _, form = key.partition(":")
        known = self._numbers if kind == "n" else TABLES
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known)) or "none is similar"
            self.faults.append(f"{page}: unknown {kind}:{name} ({close})")
            return match[0]
        new = (
            write_number(known[name], form)
            if kind == "n"
            else f"\n\n{TABLES[name](self._files).markdown()}\n"
        )
        if new != old:
            self.differ.append(f"{page}: {kind}:{key}" + (f" is {new}, not {old}" if kind == "n" else ""))
        return match[0].replace(f"-->{old}<!--", f"-->{new}<!--")


def main(arguments: list[str] | None = None) -> int:
    """Fill or check all pages; return 1 if the check finds a difference, or a page has a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if figures differ")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the project")
    options = parser.parse_args(arguments)
    filler = Filler(load_figures(options.root / "docs" / "figures"))
    for page in sorted(path for pattern in PAGES for path in options.root.glob(pattern)):
        text = page.read_text(encoding="utf-8")
        filled = filler.fill(str(page.relative_to(options.root)), text)
        if filled != text and not options.check:
            page.write_text(filled, encoding="utf-8")
    for line in [*filler.faults, *filler.differ]:
        print(line)
    return int(bool(filler.faults or (options.check and filler.differ)))


if __name__ == "__main__":
    sys.exit(main())
