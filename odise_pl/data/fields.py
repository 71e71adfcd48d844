"""Parse JSON and read fields with type checks. Imports no torch.

The messages of :class:`DataError` begin with a verb; callers prefix the name of the file or entry.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from reprlib import repr as shortened
from typing import Any

from odise_pl.data.records import DataError, prefix_errors
from odise_pl.files import is_plain_name

_MAX_AREA = 1e10  # COCO's evaluation ignores larger objects
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can have them alone, UTF-8 cannot


def parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        DataError: it is not valid JSON.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DataError("is JSON that is nested too deeply") from error
    except ValueError as error:  # also for bytes that are not UTF-8
        raise DataError(f"is not JSON in UTF-8 ({error}); it may be truncated") from error


def integer(data: Any, field: str, least: int = -(2**63), most: int = 2**63 - 1) -> int:
    """An integer field within bounds, by default those of 64 bits.

    Raises:
        DataError: it is missing, of another type or out of bounds.
    """
    value = _field(data, field)
    valid = type(value) is int and least <= value <= most
    return _checked(valid, value, field, f"a whole number from {least} to {most}")


def identifier(data: Any, field: str) -> int:
    """An integer field of at least 0."""
    return integer(data, field, least=0)


def positive(data: Any, field: str) -> int:
    """An integer field of at least 1."""
    return integer(data, field, least=1)


def area(data: Any, field: str) -> float:
    """An area, int or float as written."""
    value = _field(data, field)
    valid = _is_number(value) and 0 <= value <= _MAX_AREA
    return _checked(valid, value, field, f"a number from 0 to {_MAX_AREA:.0e}")


def string(data: Any, field: str) -> str:
    """A text field, which may be empty."""
    value = _field(data, field)
    return _checked(isinstance(value, str) and not _SURROGATE.search(value), value, field, "text")


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
    if not plain.parts or not all(map(is_plain_name, plain.parts)):
        raise DataError(f"is not a path below its folder: {shortened(path)}")
    return plain.as_posix()


def sequence(data: Any, field: str) -> list[Any]:
    """A field that is a list."""
    value = _field(data, field)
    return _checked(isinstance(value, list), value, field, "a list")


def flag(data: Any, field: str, default: bool | None = None) -> bool:
    """A field of 0, 1, false or true, required if there is no default."""
    value = _field(data, field, default)
    return bool(_checked(isinstance(value, int) and value in (0, 1), value, field, "0 or 1"))


def box(data: Any, field: str) -> tuple[float, ...]:
    """A field of four numbers."""
    value = _field(data, field)
    valid = isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))
    return tuple(_checked(valid, value, field, "four numbers"))


def segmentation(data: Any, field: str) -> Any:
    """A field with COCO's polygons or run-length code; their content is not checked."""
    value = _field(data, field)
    return _checked(
        isinstance(value, list | dict) and bool(value), value, field, "polygons or a run-length code"
    )


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


def _checked(valid: bool, value: Any, field: str, expected: str) -> Any:
    if not valid:
        raise DataError(f"has {field} {shortened(value)}, expected {expected}")
    return value
