"""Files of a data set, in folders or in zip and tar archives. Imports no torch."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from odise_pl.data.fields import parse_json
from odise_pl.data.records import DataError, prefix_errors

_GZIPPED = (".tar.gz", ".tgz")
ARCHIVE_SUFFIXES = (".zip", ".tar", *_GZIPPED)
_OF_MACOS = ("__MACOSX", ".DS_Store", ".AppleDouble")
_DAMAGE_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile),
    *(zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error),
)


def is_archive(path: Path) -> bool:
    """Whether a path is a file with the suffix of an archive."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and not is_of_macos(path.name) and path.is_file()


def is_of_macos(name: str) -> bool:
    """Whether this is a metadata file that macOS adds to folders and archives."""
    return any(part in _OF_MACOS or part.startswith("._") for part in name.split("/"))


def files_below(folder: str | Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder; follows symbolic links, but not in cycles."""
    place = os.path.realpath(folder)
    if place in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from files_below(entry.path, above | {place})
        elif entry.is_file():
            yield Path(entry.path)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file, which may be missing.

    Attributes:
        container: the folder, or the zip or tar archive, that holds it.
        name: its path in the container, with slashes.
    """

    container: Path
    name: str

    @property
    def display_name(self) -> str:
        """The name for messages: relative to a folder, ``ARCHIVE/NAME`` in an archive."""
        return f"{self.container.name}/{self.name}" if is_archive(self.container) else self.name

    @property
    def path(self) -> Path:
        """Its path on disk, below the archive's path if it is packed."""
        return self.container / self.name

    def read(self) -> bytes:
        """Its content.

        Raises:
            OSError: it is missing, or cannot be read.
        """
        if is_archive(self.container):
            return open_archive(self.container).read(self.name)
        return self.path.read_bytes()

    def read_checked(self) -> bytes:
        """Its content; DataError without its name if it cannot be read."""
        try:
            return self.read()
        except FileNotFoundError as error:
            raise DataError("is missing") from error
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from error

    def read_text(self) -> str:
        """Its content in UTF-8; DataError with its path if it cannot be read."""
        with prefix_errors(f"{self.path}:"):
            try:
                return self.read_checked().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(f"is not in UTF-8 ({error}); save it as UTF-8") from error

    def read_json(self) -> Any:
        """Its content as JSON; DataError with its path if it cannot be read."""
        with prefix_errors(f"{self.path}:"):
            return parse_json(self.read_checked())


class Archive:
    """A zip or tar file.

    Attributes:
        names: of all files except those of macOS.

    Raises:
        OSError: it cannot be read or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, Any] = {}
        self._open: Callable[[Any], IO[bytes] | None]
        with _name_errors(str(path)):
            if path.name.lower().endswith(".zip"):
                file = zipfile.ZipFile(path)
                self._open = file.open
                self._members = {info.filename: info for info in file.infolist() if not info.is_dir()}
            else:
                tar = tarfile.open(path)  # noqa: SIM115 (it stays open with the process)
                self._open = tar.extractfile
                self._members = {info.name.removeprefix("./"): info for info in tar if info.isfile()}
        self.names = tuple(name for name in self._members if not is_of_macos(name))

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: it is missing or damaged.
        """
        place = f"{self._path}/{name}"
        if name not in self._members:
            raise FileNotFoundError(2, "is not in the archive", place)
        with _name_errors(place):
            file = self._open(self._members[name])
            assert file is not None  # members are files
            with file:
                return file.read()


open_archive = cache(Archive)  # reads the list of files once per process


@contextmanager
def _name_errors(name: str) -> Iterator[None]:
    """Turn the errors of archive readers into an OSError with a name."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or compressed by an unsupported method
        raise OSError(5, f"cannot be unpacked ({error}), unpack the archive yourself", name) from error
    except _DAMAGE_ERRORS as error:
        raise OSError(5, f"is damaged ({error}), download it again", name) from error


@cache
def seekable(archive: Path) -> Path:
    """The archive in a form that allows random access: a gzipped tar is decompressed.

    The copy is deleted when this process ends; call this before starting worker processes.
    """
    if not archive.name.lower().endswith(_GZIPPED):
        return archive
    stem = archive.name[: archive.name.lower().rindex(".t")]
    copy = Path(tempfile.mkdtemp(dir=_scratch().name)) / f"{stem}.tar"
    with _name_errors(str(archive)), gzip.open(archive) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return copy


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="odise_pl_")  # removed at exit
