"""``dataset.json``, the description beside a set of shards. Imports no torch, so it is quick to check."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from odise_pl.data import fields
from odise_pl.data.records import DataError
from odise_pl.vocabulary import MEASURES, Vocabulary

FILE_NAME = "dataset.json"
FORMAT = 1
BENCHMARKS = ("ade150", "ade847", "pc59", "pc459", "pas21")  # beside COCO, each with a command of its name
_TIMEOUT = 20  # seconds to wait for a remote dataset.json
_MOST = 10**8  # samples of a set: their order is held in memory
_MOST_BYTES = 1 << 50
_SHARD_NAME = re.compile(r"\w[\w.-]*")
_LONGEST = 255  # bytes of a file name
_PREPARE = "python -m odise_pl.data.prepare coco --root COCO --split {split} --out {folder}"


class _Checked:
    """A record of text and counts, which may come out of a file that anyone has written."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check(name, value, str if type(self).__annotations__[name] == "str" else int)


def _check(name: str, value: Any, kind: type) -> None:
    """Raises DataError unless it is text, or a count that can be."""
    possible = not isinstance(value, int) or 0 <= value <= _MOST_BYTES
    if type(value) is not kind or not possible:
        raise DataError(f"{name} is {_short(value)}, expected {'text' if kind is str else 'a count'}")


def _short(value: Any) -> str:
    return ascii(value)[:80]


@dataclass(frozen=True)
class Shard(_Checked):
    """One tar file: its file name beside ``dataset.json``, what it holds, and its checksum.

    The name becomes part of a path, of a URL or, for ``pipe:``, of a shell command, so it is of letters,
    digits and ``_ . -`` alone.

    Raises:
        DataError: it has another name, or a field is of the wrong kind.
    """

    name: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _SHARD_NAME.fullmatch(self.name) or len(self.name.encode()) > _LONGEST:
            raise DataError(f"the shard name {_short(self.name)} is not a plain file name")


@dataclass(frozen=True)
class Counts(_Checked):
    """Totals of a shard set.

    Attributes:
        samples: images.
        segments: annotated segments, crowds included.
        captions: captions of all images.
        left_out: entries of the source that were left out because of problems.
        problems: what was wrong with them; ``problems.json`` lists it.
    """

    samples: int
    segments: int
    captions: int
    left_out: int
    problems: int


@dataclass(frozen=True)
class Origin(_Checked):
    """Where a shard set comes from: format, split, and the annotation file with its checksum."""

    dataset: str
    split: str
    annotations: str
    sha256: str


@dataclass(frozen=True)
class Captioning(_Checked):
    """Where the generated captions in a shard set come from.

    Attributes:
        model: name of the captioning model.
        sha256: of its weights and its tokenizer's words.
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
        source: what it was made from.
        max_shard_bytes: the limit that the samples were distributed by.
        measures: what the truth is complete for, of ``MEASURES``; semantic maps alone say nothing of objects.
        captioning: where generated captions come from; None if the samples have none.

    Raises:
        DataError: a field is of the wrong kind, or the counts do not agree with the shards.
    """

    name: str
    vocabulary: Vocabulary
    counts: Counts
    shards: tuple[Shard, ...]
    source: Origin
    max_shard_bytes: int
    measures: tuple[str, ...] = MEASURES
    captioning: Captioning | None = None

    def __post_init__(self) -> None:
        _check("name", self.name, str)
        _check("max_shard_bytes", self.max_shard_bytes, int)
        if not self.measures or not set(self.measures) <= set(MEASURES):
            raise DataError(f"measures is {_short(self.measures)}, expected some of {', '.join(MEASURES)}")
        held = sum(shard.samples for shard in self.shards)
        if held != self.counts.samples or held > _MOST:
            raise DataError(
                f"counts.samples is {self.counts.samples}, the shards hold {held} (at most {_MOST})"
            )
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise DataError("two shards have the same name")

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
        """Read the file's content.

        Raises:
            DataError: it is no ``dataset.json``, or of another version.
        """
        try:
            data = json.loads(content)
            if data["format"] != FORMAT:
                raise DataError(f"format {_short(data['format'])}, this version reads {FORMAT}")
            return cls._from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, DataError) as error:
            reason = str(error) or type(error).__name__
            raise DataError(
                f"{location}: is not the description of a shard set ({reason}); "
                "delete it and prepare the set again"
            ) from error

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Manifest:
        _check("vocabulary.name", data["vocabulary"]["name"], str)
        for item in fields.sequence(data["vocabulary"], "categories"):
            fields.integer(item, "id")
            fields.flag(item, "isthing")
        return cls(
            name=data["name"],
            vocabulary=Vocabulary.from_json(data["vocabulary"], data["vocabulary"]["name"]),
            counts=Counts(**data["counts"]),
            shards=tuple(Shard(**shard) for shard in data["shards"]),
            source=Origin(**data["source"]),
            max_shard_bytes=data["max_shard_bytes"],
            measures=tuple(data.get("measures", MEASURES)),
            captioning=Captioning(**data["captioning"]) if "captioning" in data else None,
        )


@dataclass(frozen=True)
class ShardSet:
    """A manifest and where it was found.

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


def locate(source: str | Path) -> str:
    """Path or URL of the ``dataset.json`` of a shard set that is named by it or by its folder."""
    text = str(source)
    if os.path.exists(text) and not is_local(text):  # noqa: PTH110 (as a path, a long command is an error)
        text = str(Path(text).absolute())  # a folder called a:b, say
    if not is_local(text):
        return text if FILE_NAME in text else f"{text.rstrip('/')}/{FILE_NAME}"
    path = Path(os.path.expanduser(_local_path(text)))  # noqa: PTH111  Path's fails for a folder called ~x
    location = str(path if path.suffix == ".json" and not path.is_dir() else path / FILE_NAME)
    return location if is_local(location) else f"./{location}"  # pathlib drops the ./ of ./pipe:NAME


def is_local(url: str) -> bool:
    """Whether ``url`` is a path or ``file:`` URL."""
    return urlparse(url).scheme in ("", "file")


def _local_path(url: str) -> str:
    return urlparse(url).path if url.startswith("file:") else url


def beside(location: str, name: str) -> str:
    """The URL of a file in the folder of ``dataset.json``; a ``pipe:`` command gets the other name."""
    head, found, tail = location.rpartition(FILE_NAME)
    if found and not is_local(location):
        return f"{head}{name}{tail}"
    return os.path.join(os.path.dirname(location), name)  # noqa: PTH118, PTH120 -- keeps ./ before pipe:


def check_shards(source: str | Path) -> ShardSet:
    """Find a shard set and check that it can be streamed; local sets are checked file by file.

    Raises:
        DataError: there is no ``dataset.json``, it is unusable, or none of its shards is there; the message
            names the path and the command that makes it.
    """
    location = locate(source)
    shard_set = ShardSet(location, Manifest.from_bytes(_read(location), location))
    if not shard_set.manifest.counts.samples:
        raise DataError(f"{location}: the shard set is empty; {_make(location)}")
    if is_local(location) and not any(Path(url).is_file() for url in shard_set.urls):
        first = shard_set.urls[0]
        raise DataError(
            f"{location}: none of its shards is there (the first would be {first}); {_make(location)}"
        )
    return shard_set


def missing_shards(shard_set: ShardSet) -> tuple[str, ...]:
    """Shards of a local set that are not there or not of the recorded size."""
    pairs = zip(shard_set.urls, shard_set.manifest.shards, strict=True)
    return tuple(url for url, shard in pairs if not _has_size(Path(url), shard.bytes))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _make(location: str) -> str:
    folder = Path(location).parent
    out = folder if is_local(location) else "DIR"
    name = folder.name.partition("_")[0]
    if name == "toy":
        above = folder.parent if is_local(location) else out
        return f"make it with: python -m odise_pl.toyworld.make --out {above}"
    if name in BENCHMARKS:
        return f"make it with: python -m odise_pl.data.prepare {name} --root DOWNLOADS --out {out}"
    split = "train2017" if "train" in folder.name else "val2017"
    return f"make it with: {_PREPARE.format(split=split, folder=out)}"


def _read(location: str) -> bytes:
    try:
        return _fetch(location)
    except FileNotFoundError as error:
        raise DataError(f"no shard set at {location}; {_make(location)}") from error
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise DataError(f"{location}: cannot be read ({error}); {_make(location)}") from error


def _fetch(location: str) -> bytes:
    scheme = urlparse(location).scheme
    if is_local(location):
        return Path(location).read_bytes()
    if scheme in ("http", "https"):
        with urllib.request.urlopen(location, timeout=_TIMEOUT) as response:
            return bytes(response.read())
    if scheme == "pipe":  # a shell command, as WebDataset defines it
        command = location.removeprefix("pipe:")
        return subprocess.run(command, shell=True, check=True, capture_output=True, timeout=_TIMEOUT).stdout
    from webdataset.gopen import gopen  # imports torch, so only for the schemes that need it

    with gopen(location) as stream:
        return bytes(stream.read())
