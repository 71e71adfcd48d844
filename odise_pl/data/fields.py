"""Reading fields of annotation JSON that a person may have written. Imports no torch."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from reprlib import repr as shortened
from typing import Any

from odise_pl.data.files import SourceFile
from odise_pl.data.records import DataError

_INTEGERS = range(-(2**63), 2**63)  # what tensors and NumPy hold
_LARGEST_AREA = 1e10  # of COCO's evaluation, which leaves larger objects out


def read_json(file: SourceFile) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read or is no JSON.
    """
    try:
        return json.loads(file.read())
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise DataError(f"{file.path}: is nested too deeply for an annotation file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file.path}: is not in UTF-8 ({error}); save it as UTF-8") from error
    except ValueError as error:
        raise DataError(f"{file.path}: is not JSON ({error}); it may be truncated, fetch it again") from error


def parsed(content: bytes) -> Any:
    """The JSON of a member of a shard.

    Raises:
        DataError: it is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON ({error})") from error


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
    if type(value) is not int or value not in _INTEGERS:
        raise DataError(f"has {field} {shortened(value)}, expected a whole number of at most 64 bits")
    return value


def identifier(data: Any, field: str) -> int:
    """An integer field of at least 0."""
    value = integer(data, field)
    if value < 0:
        raise DataError(f"has {field} {value}, expected 0 or more")
    return value


def positive(data: Any, field: str) -> int:
    """An integer field of at least 1."""
    value = integer(data, field)
    if value < 1:
        raise DataError(f"has {field} {value}, expected at least 1")
    return value


def area(data: Any, field: str) -> float:
    """An area, as it is written (int or float)."""
    value = _field(data, field)
    if not _is_number(value) or not 0 <= value <= _LARGEST_AREA:
        raise DataError(f"has {field} {shortened(value)}, expected a number from 0 to {_LARGEST_AREA:.0e}")
    return value


def string(data: Any, field: str) -> str:
    """A text field, which may be empty."""
    value = _field(data, field)
    if not isinstance(value, str) or _has_any(value, "Cs"):
        raise DataError(f"has {field} {shortened(value)}, expected text")
    return value


def text(data: Any, field: str) -> str:
    """A text field that is not empty."""
    value = string(data, field)
    if not value.strip():
        raise DataError(f"has an empty {field}")
    return value


def file_name(data: Any, field: str) -> str:
    """The path of a file below the folder that the data set says; see :func:`plain_path`."""
    try:
        return plain_path(text(data, field))
    except _PathError as error:
        raise DataError(f"has a {field} that {error}") from error


class _PathError(DataError):
    """Of a path alone."""


def plain_path(path: str) -> str:
    """A path below a folder, without ``.`` and empty parts: a name in a file is data and leads nowhere else.

    Raises:
        DataError: it is absolute, has ``..`` in it or characters that no name of a file has.
    """
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts or not plain.parts or _has_any(path, "Cc", "Cs"):
        raise _PathError(f"is no path below its folder: {shortened(path)}")
    return plain.as_posix()


def _has_any(value: str, *categories: str) -> bool:
    quick = value.isprintable()  # so is nearly all text
    return not quick and any(unicodedata.category(character) in categories for character in value)


def sequence(data: Any, field: str) -> list[Any]:
    """A field that is a list."""
    value = _field(data, field)
    if not isinstance(value, list):
        raise DataError(f"has {field} {shortened(value)}, expected a list")
    return value


def flag(data: Any, field: str, default: bool | None = None) -> bool:
    """A field of 0, 1, false or true, required if there is no default."""
    value = _field(data, field, default)
    if value not in (0, 1) or not isinstance(value, int):
        raise DataError(f"has {field} {shortened(value)}, expected 0 or 1")
    return bool(value)


def box(data: Any, field: str) -> tuple[float, ...]:
    """A field of four numbers."""
    value = _field(data, field)
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise DataError(f"has {field} {shortened(value)}, expected four numbers")
    return tuple(value)


def segmentation(data: Any, field: str) -> Any:
    """A field of COCO's polygons or run-length code, not looked into."""
    value = _field(data, field)
    if not isinstance(value, list | dict) or not value:
        raise DataError(f"has {field} {shortened(value)}, expected polygons or a run-length code")
    return value


def _is_number(value: Any) -> bool:
    """Whether it is an integer or a float that is neither infinite nor NaN; true and false are not."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _field(data: Any, field: str, default: Any = None) -> Any:
    if not isinstance(data, Mapping):
        raise DataError(f"is {shortened(data)}, expected an object")
    value = data.get(field, default)
    if value is None:
        raise DataError(f"has no {field}")
    return value
