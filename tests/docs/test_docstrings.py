"""Docstrings on documentation pages."""

import griffe

from scripts.docs.docstrings import Docstrings, replace_roles, split_names


def test_roles_become_code() -> None:
    assert replace_roles("see :func:`~a.b.load`, :class:`Batch` and ``x``") == "see `load`, `Batch` and `x`"


def test_arguments_with_one_text_get_one_each() -> None:
    text = "Args:\n    a, b: sizes,\n        in pixels.\n    c: a, b: not names."
    assert split_names(text) == (
        "Args:\n    a: sizes,\n        in pixels.\n    b: sizes,\n        in pixels.\n    c: a, b: not names."
    )


def test_roles_of_known_names_become_links() -> None:
    with griffe.temporary_visited_package(
        "made",
        {"__init__.py": 'def f():\n    """See :class:`C`, :attr:`C.size`, :func:`other`."""\nclass C: ...'},
        extensions=griffe.load_extensions(Docstrings),
    ) as package:
        docstring = package["f"].docstring
        assert docstring is not None
    links = [
        f'<autoref identifier="made.{path}" optional><code>{path}</code></autoref>'
        for path in ("C", "C.size")
    ]
    assert docstring.value == f"See {links[0]}, {links[1]}, `other`."
