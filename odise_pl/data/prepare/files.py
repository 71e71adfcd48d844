"""Files and folders of a data set, on disk or in zip archives. Imports no torch."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from odise_pl.data.fields import parse_json
from odise_pl.data.records import DataError, prefix_errors

_OF_MACOS = ("__MACOSX", ".DS_Store", ".AppleDouble")


def is_zip(path: Path) -> bool:
    """Whether a path is a file with the suffix of a zip archive."""
    return path.suffix.lower() == ".zip" and not is_of_macos(path.name) and path.is_file()


def is_of_macos(name: str) -> bool:
    """Whether this is a metadata file that macOS adds to folders and archives."""
    return any(part in _OF_MACOS or part.startswith("._") for part in name.split("/"))


@cache  # reads the list of files once per process
def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        DataError: it cannot be read or is damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is damaged ({error}), download it again") from error


@cache
def zip_members(path: Path) -> list[str]:
    """The names of all files in a zip archive, except those of macOS."""
    return [name for name in open_zip(path).namelist() if not name.endswith("/") and not is_of_macos(name)]


@dataclass(frozen=True, slots=True)
class SourcePath:
    """A file or folder, which may be missing.

    Attributes:
        container: the folder, or the zip archive, that holds it.
        name: its path in the container, with slashes.
    """

    container: Path
    name: str

    @property
    def display_name(self) -> str:
        """The name for messages: relative to a folder, ``ARCHIVE/NAME`` in an archive."""
        return f"{self.container.name}/{self.name}" if is_zip(self.container) else self.name

    @property
    def path(self) -> Path:
        """Its path on disk, below the archive's path if it is packed."""
        return self.container / self.name

    def file(self, name: str) -> SourcePath:
        """A file of this folder, which may be missing."""
        return SourcePath(self.container, f"{self.name}/{name}")

    def names(self) -> list[str]:
        """Relative paths of all files below this folder except those of macOS, sorted; follows links."""
        if is_zip(self.container):
            above = f"{self.name}/"
            return sorted(n.removeprefix(above) for n in zip_members(self.container) if n.startswith(above))
        walk = os.walk(self.path, followlinks=True)
        paths = (Path(folder) / name for folder, _, names in walk for name in names)
        found = (path.relative_to(self.path).as_posix() for path in paths)
        return sorted(name for name in found if not is_of_macos(name))

    def read(self) -> bytes:
        """Its content.

        Raises:
            DataError: it is missing or cannot be read; the message does not name it.
        """
        try:
            if is_zip(self.container):
                return open_zip(self.container).read(self.name)
            return self.path.read_bytes()
        except (FileNotFoundError, KeyError) as error:
            raise DataError("is missing") from error
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from error
        except Exception as error:  # damaged, encrypted or compressed by a method that Python lacks
            raise DataError(f"cannot be unpacked ({error}), download or unpack the archive again") from error

    def read_text(self) -> str:
        """Its content in UTF-8; DataError with its path if it cannot be read."""
        with prefix_errors(f"{self.path}:"):
            try:
                return self.read().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(f"is not in UTF-8 ({error}); save it as UTF-8") from error

    def read_json(self) -> Any:
        """Its content as JSON; DataError with its path if it cannot be read."""
        with prefix_errors(f"{self.path}:"):
            return parse_json(self.read())
