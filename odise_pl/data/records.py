"""Names of the members of a sample in a shard, segment records, and the error for unusable data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from odise_pl.errors import UserError

# Members of a sample: KEY.jpg or KEY.png, KEY.panoptic.png, KEY.json; some sets have the last two as well.
IMAGES = ("jpg", "png")
PANOPTIC = "panoptic.png"
RECORD = "json"
SEMANTIC = "semantic.png"
INSTANCES = "instances.json"


class DataError(UserError):
    """Missing, damaged or inconsistent data; the message is one line for the user."""


@contextmanager
def prefix_errors(prefix: str) -> Iterator[None]:
    """Prefix the message of a DataError with the name of a file or field."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{prefix} {error}") from error


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One segment of a panoptic PNG.

    Attributes:
        id: R + 256 G + 65536 B of the segment's pixels, never 0.
        category: contiguous class index.
        isthing: countable object (True) or stuff (False).
        iscrowd: a group that is not split into instances.
        area: pixels, as annotated.
        bbox: x, y, width, height in pixels, as annotated.
    """

    id: int
    category: int
    isthing: bool
    iscrowd: bool
    area: float
    bbox: tuple[float, ...]
