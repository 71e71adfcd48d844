"""Parse JSON and read fields with type checks. Imports no torch.

The messages of :class:`DataError` begin with a verb; callers prefix the name of the file or entry.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from reprlib import repr as shortened
from typing import Any

from odise_pl.data.records import DataError, prefix_errors

_MAX_AREA = 1e10  # COCO's evaluation ignores larger objects


def parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        DataError: it is not valid JSON.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DataError("is JSON that is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not in UTF-8 ({error}); save it as UTF-8") from error
    except ValueError as error:
        raise DataError(f"is not JSON ({error}); it may be truncated") from error


def integer(
    data: Any, field: str, default: int | None = None, least: int = -(2**63), most: int = 2**63 - 1
) -> int:
    """An integer field within bounds, by default those of 64 bits.

    Raises:
        DataError: it is missing (and there is no default), of another type or out of bounds.
    """
    value = _field(data, field, default)
    if type(value) is not int or not least <= value <= most:
        raise DataError(f"has {field} {shortened(value)}, expected a whole number from {least} to {most}")
    return value


def identifier(data: Any, field: str) -> int:
    """An integer field of at least 0."""
    return integer(data, field, least=0)


def positive(data: Any, field: str) -> int:
    """An integer field of at least 1."""
    return integer(data, field, least=1)


def area(data: Any, field: str) -> float:
    """An area, int or float as written."""
    value = _field(data, field)
    if not _is_number(value) or not 0 <= value <= _MAX_AREA:
        raise DataError(f"has {field} {shortened(value)}, expected a number from 0 to {_MAX_AREA:.0e}")
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
    """The path of a file below the folder of the data set; see :func:`plain_path`."""
    path = text(data, field)
    with prefix_errors(f"has a {field} that"):
        return plain_path(path)


def plain_path(path: str) -> str:
    """Normalise a relative path: remove ``.`` and empty parts.

    Raises:
        DataError: it is absolute, or contains ``..`` or characters that file names cannot have.
    """
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts or not plain.parts or _has_any(path, "Cc", "Cs"):
        raise DataError(f"is not a path below its folder: {shortened(path)}")
    return plain.as_posix()


def _has_any(value: str, *categories: str) -> bool:
    """Whether text has characters of these Unicode categories, none of which are printable."""
    return not value.isprintable() and any(unicodedata.category(one) in categories for one in value)


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
    """A field with COCO's polygons or run-length code; their content is not checked."""
    value = _field(data, field)
    if not isinstance(value, list | dict) or not value:
        raise DataError(f"has {field} {shortened(value)}, expected polygons or a run-length code")
    return value


def _is_number(value: Any) -> bool:
    """Whether it is an integer or a finite float, not a boolean."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _field(data: Any, field: str, default: Any = None) -> Any:
    if not isinstance(data, Mapping):
        raise DataError(f"is {shortened(data)}, expected an object")
    value = data.get(field, default)
    if value is None:
        raise DataError(f"has no {field}")
    return value
