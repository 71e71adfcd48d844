"""Reading fields of annotation JSON that a person may have written. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odise_pl.data.files import SourceFile
from odise_pl.data.records import DataError


def read_json(file: SourceFile) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read or is no JSON.
    """
    try:
        return json.loads(file.read())
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{file.path}: is not JSON ({error}); it may be truncated, fetch it again") from error


def list_of(data: Any, field: str, path: Path) -> list[Any]:
    """The list ``field`` of the object that ``path`` holds.

    Raises:
        DataError: there is none.
    """
    value = data.get(field) if isinstance(data, Mapping) else None
    if not isinstance(value, list):
        raise DataError(f"{path}: expected an object with a list '{field}'")
    return value


def integer(data: Any, field: str, default: int | None = None) -> int:
    """An integer field.

    Raises:
        DataError: it is missing (and there is no default) or of another type.
    """
    value = _field(data, field, default)
    if type(value) is not int:
        raise DataError(f"has {field} {value!r}, expected a whole number")
    return value


def positive(data: Any, field: str) -> int:
    """An integer field of at least 1."""
    value = integer(data, field)
    if value < 1:
        raise DataError(f"has {field} {value}, expected at least 1")
    return value


def number(data: Any, field: str) -> float:
    """A numeric field, as it is written (int or float)."""
    value = _field(data, field)
    if type(value) not in (int, float):
        raise DataError(f"has {field} {value!r}, expected a number")
    return value


def string(data: Any, field: str) -> str:
    """A text field, which may be empty."""
    value = _field(data, field)
    if not isinstance(value, str):
        raise DataError(f"has {field} {value!r}, expected text")
    return value


def text(data: Any, field: str) -> str:
    """A text field that is not empty."""
    value = string(data, field)
    if not value:
        raise DataError(f"has an empty {field}")
    return value


def sequence(data: Any, field: str) -> list[Any]:
    """A field that is a list."""
    value = _field(data, field)
    if not isinstance(value, list):
        raise DataError(f"has {field} {value!r}, expected a list")
    return value


def flag(data: Any, field: str, default: bool) -> bool:
    """A field of 0, 1, false or true."""
    value = _field(data, field, default)
    if value not in (0, 1) or not isinstance(value, int):
        raise DataError(f"has {field} {value!r}, expected 0 or 1")
    return bool(value)


def box(data: Any, field: str) -> tuple[float, ...]:
    """A field of four numbers."""
    value = _field(data, field)
    if not isinstance(value, list) or len(value) != 4 or not all(type(v) in (int, float) for v in value):
        raise DataError(f"has {field} {value!r}, expected four numbers")
    return tuple(value)


def segmentation(data: Any, field: str) -> Any:
    """A field of COCO's polygons or run-length code, not looked into."""
    value = _field(data, field)
    if not isinstance(value, list | dict) or not value:
        raise DataError(f"has {field} {value!r}, expected polygons or a run-length code")
    return value


def _field(data: Any, field: str, default: Any = None) -> Any:
    if not isinstance(data, Mapping):
        raise DataError(f"is {data!r}, expected an object")
    value = data.get(field, default)
    if value is None:
        raise DataError(f"has no {field}")
    return value
