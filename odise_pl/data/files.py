"""Files of a data set, unpacked or inside the archives as they were downloaded. Imports no torch."""

from __future__ import annotations

import atexit
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
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_OF_MACOS = ("__MACOSX", ".DS_Store", ".AppleDouble")
_DAMAGES = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile),
    *(zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error),
)
_SUFFIXES_OF_GZIP = (".tar.gz", ".tgz")


def is_archive(name: str) -> bool:
    """Whether a file of this name is taken for an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES) and not is_of_macos(name)


def is_packed(container: Path) -> bool:
    """Whether a container is an archive, and no folder that is called like one."""
    return is_archive(container.name) and not container.is_dir()


def files_below(folder: str | Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every file at and below a folder; links are followed, but not in a circle."""
    place = os.path.realpath(folder)
    if place in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from files_below(entry.path, above | {place})
        elif entry.is_file():
            yield Path(entry.path)


def archive_stem(name: str) -> str:
    """The name of an archive without folders and suffix, which may be of two parts."""
    base = PurePosixPath(name).name
    return next(base[: -len(suffix)] for suffix in ARCHIVE_SUFFIXES if base.lower().endswith(suffix))


def is_of_macos(name: str) -> bool:
    """Whether a path is of what macOS puts beside a user's files in folders and archives."""
    return any(part in _OF_MACOS or part.startswith("._") for part in name.split("/"))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file, which need not be there.

    Attributes:
        container: the folder, or the zip or tar archive, that holds it.
        name: its path in the container, with slashes.
    """

    container: Path
    name: str

    @property
    def shown(self) -> str:
        """Its name in messages: relative to a folder, ``ARCHIVE/NAME`` in an archive."""
        return self.name if self._is_loose else f"{self.container.name}/{self.name}"

    @property
    def path(self) -> Path:
        """Where it is on disk; within the archive's path if it is packed."""
        return self.container / self.name

    @property
    def stem(self) -> str:
        """Its file name without folders and suffix."""
        return PurePosixPath(self.name).stem

    @property
    def _is_loose(self) -> bool:
        return not is_packed(self.container)

    def read(self) -> bytes:
        """Its content.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        return self.path.read_bytes() if self._is_loose else open_archive(self.container).read(self.name)

    def facts(self) -> tuple[int, int]:
        """Its size, and what tells it from another file of that name and size: time or checksum.

        Raises:
            OSError: it is not there.
        """
        if not self._is_loose:
            return open_archive(self.container).facts(self.name)
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns


class Archive(Protocol):
    """A packed folder."""

    def names(self) -> tuple[str, ...]:
        """All files in it but those of macOS."""

    def facts(self, name: str) -> tuple[int, int]:
        """See :meth:`SourceFile.facts`."""

    def read(self, name: str) -> bytes:
        """The content of a file."""

    def copy(self, name: str, target: IO[bytes]) -> None:
        """Write the content of a file, which may be larger than memory."""


class _Zip:
    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._path = path

    def names(self) -> tuple[str, ...]:
        names = (info.filename for info in self._zip.infolist() if not info.is_dir())
        return tuple(name for name in names if not is_of_macos(name))

    def facts(self, name: str) -> tuple[int, int]:
        info = self._info(name)
        return info.file_size, info.CRC

    def read(self, name: str) -> bytes:
        with _named_errors(f"{self._path}/{name}"):
            return self._zip.read(self._info(name))

    def copy(self, name: str, target: IO[bytes]) -> None:
        with _named_errors(f"{self._path}/{name}"), self._zip.open(self._info(name)) as source:
            shutil.copyfileobj(source, target, 1 << 20)

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._zip.getinfo(name)
        except KeyError:
            raise _missing(self._path, name) from None


class _Tar:
    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115 (it stays open with the process)
        self._members = {member.name.removeprefix("./"): member for member in self._tar if member.isfile()}
        self._path = path

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in self._members if not is_of_macos(name))

    def facts(self, name: str) -> tuple[int, int]:
        member = self._member(name)
        return member.size, int(member.mtime)

    def read(self, name: str) -> bytes:
        with _named_errors(f"{self._path}/{name}"):
            source = self._tar.extractfile(self._member(name))
            assert source is not None  # only files are members
            return source.read()

    def copy(self, name: str, target: IO[bytes]) -> None:
        with _named_errors(f"{self._path}/{name}"):
            source = self._tar.extractfile(self._member(name))
            assert source is not None
            shutil.copyfileobj(source, target, 1 << 20)

    def _member(self, name: str) -> tarfile.TarInfo:
        if name not in self._members:
            raise _missing(self._path, name)
        return self._members[name]


def _missing(archive: Path, name: str) -> FileNotFoundError:
    return FileNotFoundError(2, "is not in the archive", f"{archive}/{name}")


def open_archive(path: Path) -> Archive:
    """An archive with its list of files, read once in every process.

    Raises:
        OSError: it cannot be read or is damaged.
    """
    return _opened(path, path.stat().st_mtime_ns)


@cache
def _opened(path: Path, _: int) -> Archive:
    with _named_errors(str(path)):
        return _Zip(path) if path.name.lower().endswith(".zip") else _Tar(path)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Turns all that a damaged or unusual archive makes its readers raise into an OSError with a name."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:  # a password, a method of compression
        raise OSError(5, f"cannot be unpacked here ({error}), unpack the archive yourself", name) from error
    except _DAMAGES as error:
        raise OSError(5, f"is damaged ({error}), fetch it again", name) from error


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="odise_pl_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def quick(path: Path) -> Path:
    """The archive in a form in which files can be read in any order: a gzipped tar is unzipped.

    The copy lasts as long as the process. Worker processes read it too, so the one that starts them makes it.
    """
    if not path.name.lower().endswith(_SUFFIXES_OF_GZIP):
        return path
    name = path.name.rpartition(".gz")[0] or path.stem + ".tar"
    with _named_errors(str(path)), gzip.open(path) as source:
        return _kept(name, lambda target: shutil.copyfileobj(source, target, 1 << 20))


@cache
def unpacked(archive: Path, name: str) -> Path:
    """An archive that lies inside an archive, as a file of its own; it lasts as :func:`quick` says."""
    return _kept(PurePosixPath(name).name, lambda target: open_archive(archive).copy(name, target))


def _kept(name: str, write: Callable[[IO[bytes]], None]) -> Path:
    folder = Path(tempfile.mkdtemp(dir=_scratch()))
    with (folder / name).open("wb") as target:
        write(target)
    return folder / name
