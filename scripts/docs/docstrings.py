"""Docstrings for documentation pages: Sphinx's roles become links, arguments that share a text get one each.

mkdocs.yml loads this file as an extension of griffe, which reads the docstrings for the API page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc|obj):`(~?)([\w.]+)`")
_NAMES = re.compile(r"^( +)((?:\w+, )+\w+):((?:.*)(?:\n\1 +.*)*)", re.MULTILINE)


def replace_roles(text: str, render: Callable[[str, str], str] | None = None) -> str:
    """Replace ``:func:`~package.name``` and the like; by default with inline code.

    Args:
        text: a docstring or a part of one.
        render: makes Markdown from what is shown and what is named.
    """

    def replace(match: re.Match[str]) -> str:
        tilde, target = match.groups()
        shown = target.rpartition(".")[2] if tilde else target
        return render(shown, target) if render else f"`{shown}`"

    return _ROLE.sub(replace, text.replace("``", "`"))


def split_names(text: str) -> str:
    """Write ``a, b: meaning`` as ``a: meaning`` and ``b: meaning``."""
    return _NAMES.sub(lambda m: "\n".join(f"{m[1]}{name}:{m[3]}" for name in m[2].split(", ")), text)


class Docstrings(griffe.Extension):
    """Roles become links to what the API page documents, and inline code otherwise."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package."""
        _rewrite(pkg)


def _rewrite(item: griffe.Object) -> None:
    if item.docstring:
        text = split_names(item.docstring.value)
        item.docstring.value = replace_roles(text, lambda *names: _link(item, *names))
    for member in item.members.values():
        if isinstance(member, griffe.Object):  # no alias of a name from elsewhere
            _rewrite(member)


def _link(item: griffe.Object, shown: str, target: str) -> str:
    first, dot, rest = target.partition(".")
    try:
        path = target if first == item.package.name else item.resolve(first) + dot + rest
    except griffe.NameResolutionError:
        return f"`{shown}`"
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'
