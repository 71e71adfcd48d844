"""``dataset.json``, the manifest of a shard set. Imports no torch, so that checks are fast."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from odise_pl.data import fields
from odise_pl.data.records import DataError, prefix_errors
from odise_pl.vocabulary import MEASURES, Vocabulary, VocabularyError

FILE_NAME = "dataset.json"
FORMAT = 1
_TIMEOUT = 20  # seconds to wait for a remote dataset.json
_MAX_SAMPLES = 10**8  # samples of a set: their order is held in memory
_MAX_BYTES = 1 << 50
_SHARD_NAME = re.compile(r"\w[\w.-]{0,199}")
_MAKE = "make it with odise prepare coco, or another source (--help; the small world: odise toyworld make)"
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Shard:
    """One tar file: its file name beside ``dataset.json``, what it holds, and its checksum.

    The name becomes part of a path, of a URL or, for ``pipe:``, of a shell command, so it consists of
    letters, digits and ``_ . -``.
    """

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Counts:
    """Totals of a shard set.

    Attributes:
        samples: images.
        segments: annotated segments, crowds included.
        captions: captions of all images.
        left_out: entries of the source that were skipped because of problems.
        problems: what was wrong with them; ``problems.json`` lists it.
    """

    samples: int
    segments: int
    captions: int
    left_out: int
    problems: int


@dataclass(frozen=True)
class Origin:
    """Source of a shard set: data set format, split, and annotation file with checksum."""

    dataset: str
    split: str
    annotations: str
    sha256: str


@dataclass(frozen=True)
class Captioning:
    """Source of the generated captions in a shard set.

    Attributes:
        model: name of the captioning model.
        sha256: of its weights and its tokenizer's vocabulary.
        max_tokens: limit of a caption's length.
        shards: SHA-256 over the checksums of the shards that were captioned.
    """

    model: str
    sha256: str
    max_tokens: int
    shards: str


@dataclass(frozen=True)
class Manifest:
    """The content of ``dataset.json``.

    Attributes:
        name: name of the shard set.
        vocabulary: the classes; segments in the shards hold indices into it.
        counts: totals.
        shards: the tar files in order.
        source: the data set that it was made from.
        max_shard_bytes: limit of a shard's size.
        measures: which of ``MEASURES`` the annotations are complete for.
        captioning: source of the generated captions; None without any.
    """

    name: str
    vocabulary: Vocabulary
    counts: Counts
    shards: tuple[Shard, ...]
    source: Origin
    max_shard_bytes: int
    measures: tuple[str, ...] = MEASURES
    captioning: Captioning | None = None

    def to_bytes(self) -> bytes:
        """The file's content; equal manifests give equal bytes."""
        data = {
            "format": FORMAT,
            "name": self.name,
            "source": asdict(self.source),
            "counts": asdict(self.counts),
            "max_shard_bytes": self.max_shard_bytes,
            **({} if self.measures == MEASURES else {"measures": list(self.measures)}),
            "shards": [asdict(shard) for shard in self.shards],
            "vocabulary": self.vocabulary.to_json(),
        }
        if self.captioning is not None:
            data["captioning"] = asdict(self.captioning)
        return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, location: str) -> Manifest:
        """Parse the file's content.

        Raises:
            DataError: it is not a ``dataset.json`` of this version; the message names the field.
        """
        try:
            return _manifest(fields.parse_json(content))
        except (DataError, VocabularyError) as error:
            raise DataError(
                f"{location}: is not the manifest of a shard set (it {error}); "
                f"delete it and prepare the set again"
            ) from error


def _manifest(data: Any) -> Manifest:
    version = fields.integer(data, "format")
    if version != FORMAT:
        raise DataError(f"has format {version}, but this version reads {FORMAT}")
    vocabulary = data.get("vocabulary")
    with prefix_errors("vocabulary:"):
        name = fields.string(vocabulary, "name")
    measures = fields.sequence(data, "measures") if "measures" in data else MEASURES
    if not measures or not all(measure in MEASURES for measure in measures):
        raise DataError(f"has measures {ascii(measures)[:80]}, expected some of {', '.join(MEASURES)}")
    manifest = Manifest(
        name=fields.string(data, "name"),
        vocabulary=Vocabulary.from_json(vocabulary, name),
        counts=_record(Counts, data.get("counts")),
        shards=tuple(_record(Shard, shard) for shard in fields.sequence(data, "shards")),
        source=_record(Origin, data.get("source")),
        max_shard_bytes=_count(data, "max_shard_bytes"),
        measures=tuple(measures),
        captioning=_record(Captioning, data["captioning"]) if "captioning" in data else None,
    )
    _check_shards(manifest)
    return manifest


def _record(kind: Callable[..., _Record], data: Any) -> _Record:
    """Read a dataclass of texts and counts."""
    readers = {"str": fields.string, "int": _count}
    values = {field.name: readers[str(field.type)](data, field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**values)


def _count(data: Any, field: str) -> int:
    return fields.integer(data, field, least=0, most=_MAX_BYTES)


def _check_shards(manifest: Manifest) -> None:
    """Raise DataError for an unusable or duplicate shard name, or if shards and counts disagree."""
    names = [shard.name for shard in manifest.shards]
    for name in names:
        if not _SHARD_NAME.fullmatch(name):
            raise DataError(f"has the shard name {ascii(name)[:80]}, which is not a plain file name")
    if len(set(names)) < len(names):
        raise DataError("has two shards of the same name")
    held = sum(shard.samples for shard in manifest.shards)
    if held != manifest.counts.samples or held > _MAX_SAMPLES:
        raise DataError(
            f"has counts.samples {manifest.counts.samples}, but its shards hold {held} (limit {_MAX_SAMPLES})"
        )


@dataclass(frozen=True)
class ShardSet:
    """A manifest and its location.

    Attributes:
        location: path or URL of ``dataset.json``.
        manifest: its content.
    """

    location: str
    manifest: Manifest

    @property
    def urls(self) -> tuple[str, ...]:
        """Path or URL of each shard, for WebDataset."""
        return tuple(beside(self.location, shard.name) for shard in self.manifest.shards)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(shard.samples for shard in self.manifest.shards)


def resolve_location(source: str | Path) -> str:
    """Absolute path or URL of the ``dataset.json`` of a shard set, from that path or from its folder.

    A relative path whose first part contains a colon has to begin with ``./``.
    """
    text = str(source)
    if isinstance(source, str) and not is_local(source):
        return text if FILE_NAME in text else f"{text.rstrip('/')}/{FILE_NAME}"
    local = urlsplit(text).path if text.startswith("file:") else text
    path = Path(os.path.expanduser(local)).absolute()  # noqa: PTH111  Path's fails for a folder called ~x
    return str(path if path.suffix == ".json" and not path.is_dir() else path / FILE_NAME)


def is_local(url: str) -> bool:
    """Whether ``url`` is a path or ``file:`` URL."""
    return urlsplit(url).scheme in ("", "file")


def beside(location: str, name: str) -> str:
    """The URL of a file in the folder of ``dataset.json``; a ``pipe:`` command gets the other name."""
    if is_local(location):
        return str(Path(location).with_name(name))
    head, _, tail = location.rpartition(FILE_NAME)
    return f"{head}{name}{tail}"


def open_shard_set(source: str | Path) -> ShardSet:
    """Read the manifest of a shard set and check that it has shards.

    Raises:
        DataError: ``dataset.json`` is missing or unusable, or all shards of a local set are missing; the
            message names the path and the commands that make one.
    """
    location = resolve_location(source)
    shard_set = ShardSet(location, Manifest.from_bytes(_read(location), location))
    if not shard_set.manifest.counts.samples:
        raise DataError(f"{location}: the shard set is empty; {_MAKE}")
    if is_local(location) and not any(Path(url).is_file() for url in shard_set.urls):
        raise DataError(f"{location}: its shards are missing (the first is {shard_set.urls[0]}); {_MAKE}")
    return shard_set


def parse_eval_sets(val: str | Mapping[Any, str] | None) -> dict[str, str]:
    """Folder, ``dataset.json`` or URL of each evaluation set by name; a single set is called "val"."""
    sets = val if isinstance(val, Mapping) else {} if val is None else {"val": val}
    return {str(name): str(source) for name, source in sets.items()}


def find_missing_shards(shard_set: ShardSet) -> tuple[str, ...]:
    """Shards of a local set that are missing or not of the recorded size."""
    sizes = {url: Path(url).stat().st_size for url in shard_set.urls if Path(url).is_file()}
    pairs = zip(shard_set.urls, shard_set.manifest.shards, strict=True)
    return tuple(url for url, shard in pairs if sizes.get(url) != shard.bytes)


def _read(location: str) -> bytes:
    try:
        return _fetch(location)
    except FileNotFoundError as error:
        raise DataError(f"no shard set at {location}; {_MAKE}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{location}: cannot be read ({error})") from error


def _fetch(location: str) -> bytes:
    if is_local(location):
        return Path(location).read_bytes()
    if urlsplit(location).scheme in ("http", "https"):  # WebDataset's curl repeats a request for minutes
        with urllib.request.urlopen(location, timeout=_TIMEOUT) as response:
            return bytes(response.read())
    from webdataset.gopen import gopen  # imports torch

    with gopen(location) as stream:
        return bytes(stream.read())
