"""Every message that the page quotes is in the source, so that the page cannot rot."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
FOREIGN = "## Other programs' messages"
HOLE = "\0"  # what an f-string or a logger fills in


def quotes() -> list[str]:
    """The code spans in the first column of the tables, ``...`` for variable parts; not of other programs."""
    own, foreign, _ = PAGE.read_text(encoding="utf-8").partition(FOREIGN)
    assert foreign
    cells = re.findall(r"^\| (`.+?) \| ", own, re.MULTILINE)
    return [quote for cell in cells for quote in re.findall(r"`(.+?)`", cell)]


def strings(node: ast.AST) -> Iterator[str]:
    """All strings of a module but its docstrings, as users see them."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.JoinedStr):
        yield "".join(v.value if isinstance(v, ast.Constant) else HOLE for v in node.values)  # type: ignore[misc]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub("%[sd]", HOLE, node.value)
    for child in ast.iter_child_nodes(node):
        yield from strings(child)


@pytest.fixture(scope="module")
def source() -> str:
    modules = [ast.parse(path.read_bytes()) for path in sorted((ROOT / "odise_pl").rglob("*.py"))]
    found = [text for module in modules for text in strings(module)]
    return "\n\n".join([*found, (ROOT / "Makefile").read_text(encoding="utf-8")])


@pytest.mark.parametrize("quote", quotes())
def test_quoted_message_is_in_the_source(quote: str, source: str) -> None:
    parts = [part for part in quote.split("...") if part]
    assert len("".join(parts)) >= 9, "too short to search for"
    pattern = "[^\n]*".join(map(re.escape, parts))
    assert re.search(pattern, source), "no message has this text"


def test_page_quotes_many_messages() -> None:
    assert len(quotes()) > 100
    assert len(quotes()) == len(set(quotes()))
