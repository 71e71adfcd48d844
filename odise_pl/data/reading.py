"""Read samples from shards by index; damage is returned, never raised."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys, tar_file_expander

from odise_pl.data.records import IMAGES, INSTANCES, PANOPTIC, RECORD, SEMANTIC, DataError
from odise_pl.data.sample_order import Piece
from odise_pl.files import is_plain_name

_OPTIONAL = (SEMANTIC, INSTANCES)


@dataclass(frozen=True)
class RawSample:
    """A sample as stored in a shard.

    Attributes:
        key: its key.
        name: shard and key, for messages.
        members: content by suffix: image and json, panoptic.png unless the image is unlabelled, optionally
            semantic.png and instances.json.
    """

    key: str
    name: str
    members: Mapping[str, bytes]

    @property
    def image(self) -> str:
        """Suffix of the image."""
        return _image_of(self.members)


Item = RawSample | DataError  # which names the damaged shard or sample, and the cause


def read_piece(urls: tuple[str, ...], piece: Piece, first: int = 0) -> Iterator[Item]:
    """The samples of a piece in its order of use, from number ``first`` on.

    Only the shards of these samples are opened. Samples that are read ahead stay in memory.
    """
    order = piece.order[first:].tolist()
    reader = _in_reading_order(urls, piece, np.sort(piece.order[first:]))
    held: dict[int, Item] = {}
    for number in order:
        while number not in held:
            place, item = next(reader)
            held[place] = item
        yield held.pop(number)


def _in_reading_order(urls: tuple[str, ...], piece: Piece, places: np.ndarray) -> Iterator[tuple[int, Item]]:
    # A new run begins where the shard changes, or where the next pass reads the same shard again.
    changes = (np.diff(piece.shards[places]) != 0) | (np.diff(piece.indices[places]) <= 0)
    for run in np.split(places, np.flatnonzero(changes) + 1):
        if len(run):
            items = read_shard(urls[int(piece.shards[run[0]])], piece.indices[run].tolist())
            yield from zip(run.tolist(), items, strict=True)


def read_shard(url: str, indices: list[int]) -> Iterator[Item]:
    """The samples at these ascending indices of a shard, one item for each index."""
    errors: list[Exception] = []
    waiting = list(reversed(indices))
    with closing(_samples(url, errors)) as samples:
        for index, sample in enumerate(samples):
            if index == waiting[-1]:
                waiting.pop()
                yield _check_members(sample, url, errors)
            if not waiting:
                return
    cause = _reason(errors[-1]) if errors else f"it ends before sample {waiting[-1]}"
    yield from [DataError(f"{url}: damaged or unreadable shard ({cause})")] * len(waiting)


def _samples(url: str, errors: list[Exception]) -> Generator[dict[str, Any], None, None]:
    """WebDataset's samples of one shard; an error ends the shard and is appended to ``errors``."""

    def note(error: Exception) -> bool:
        errors.append(error)
        return False

    try:
        stream = gopen(url)
    except Exception as error:  # every scheme fails in its own way
        errors.append(error)
        return
    try:
        files = tar_file_expander([{"url": url, "stream": stream}], handler=note)
        yield from group_by_keys(files, handler=note)
    finally:
        try:
            stream.close()
        except OSError as error:
            # Often the cause of a truncated shard. A command also fails if its output is not read completely,
            # so this counts only if samples are missing.
            errors.append(error)


def _check_members(sample: dict[str, Any], url: str, errors: list[Exception]) -> Item:
    key = sample["__key__"]
    if not is_plain_name(key):  # predictions are written to files of this name
        return DataError(f"{url}: the key {key!a} is not a plain file name")
    needed = (_image_of(sample), PANOPTIC, RECORD)
    absent = [suffix for suffix in needed if suffix not in sample]
    # An image may have no labels, unless the shard is truncated here.
    if absent and (absent != [PANOPTIC] or errors):
        cause = f" ({_reason(errors[-1])})" if errors else ""
        return DataError(f"{url}/{key}: member {absent[0]} is missing{cause}")
    return RawSample(key, f"{url}/{key}", {s: sample[s] for s in (*needed, *_OPTIONAL) if s in sample})


def _image_of(members: Mapping[str, Any]) -> str:
    return next((suffix for suffix in IMAGES if suffix in members), IMAGES[0])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # WebDataset appends the stream and the URL to the arguments of an error.
    return str(error.args[0]).split(" @ ")[0] if error.args else type(error).__name__
