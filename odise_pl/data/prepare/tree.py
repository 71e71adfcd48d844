"""Finding the parts of a data set under its roots, unpacked or packed. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from odise_pl.data.fields import plain_path
from odise_pl.data.files import (
    SourceFile,
    archive_stem,
    files_below,
    is_archive,
    is_of_macos,
    is_packed,
    open_archive,
    quick,
    unpacked,
)
from odise_pl.data.records import DataError

_DEPTH = 3  # levels of folders above a part: archives unpack to a folder of their own, and people add another
_OTHER_ARCHIVES = (".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".7z", ".rar")
_Place = TypeVar("_Place", "Folder", SourceFile)


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the roots of a data set."""
    parser.add_argument(
        "--root",
        type=Path,
        nargs="+",
        required=True,
        help="folder with the data set, unpacked or in its archives (zip, tar) as downloaded; several of "
        "either are searched as one",
    )


def below(option: str, path: str) -> str:
    """What an option names, as a path below a root.

    Raises:
        DataError: it is none.
    """
    try:
        return plain_path(path)
    except DataError as error:
        raise DataError(f"{option} {error}") from error


@dataclass(frozen=True)
class Folder:
    """A folder on disk or in an archive.

    Attributes:
        container: see :class:`SourceFile`.
        prefix: path of the folder in the container, with a slash at its end, or nothing.
    """

    container: Path
    prefix: str

    def file(self, name: str) -> SourceFile:
        """The file of this name, which need not be there."""
        return SourceFile(self.container, self.prefix + name)

    def names(self) -> list[str]:
        """All files at and below the folder but those of macOS, relative to it, sorted."""
        if is_packed(self.container):
            found = (name for name in open_archive(self.container).names() if name.startswith(self.prefix))
            return sorted(name.removeprefix(self.prefix) for name in found)
        folder = self.container / self.prefix
        loose = (path.relative_to(folder).as_posix() for path in files_below(folder))
        return sorted(name for name in loose if not is_of_macos(name))


class Tree:
    """What lies under some roots: folders with files and archives in them, or archives.

    An archive stands for its content at the place where it lies. A part of a data set may lie a few folders
    deeper than it should, because archives and people put things into folders.

    Args:
        roots: folders and archives.
        hint: where the data set comes from, for messages.

    Raises:
        DataError: a root is neither.
    """

    def __init__(self, roots: Path | Sequence[Path], hint: str) -> None:
        self._hint = hint
        self.roots = (roots,) if isinstance(roots, Path) else tuple(roots)
        self._unreadable: dict[Path, str] = {}
        for root in self.roots:
            if not root.is_dir() and not (root.is_file() and is_archive(root.name)):
                raise DataError(
                    f"{root}, named by --root, is neither a folder nor a zip, tar or tar.gz archive: {hint}"
                )

    def folder(self, path: str) -> Folder | None:
        """The folder that ends in ``path``.

        Raises:
            DataError: there are several.
        """
        loose = [Folder(root, f"{name}/") for root, name in self._loose(path) if (root / name).is_dir()]
        return _only(path, loose or [f for place in self._packed(path) for f in _folders(*place, path)])

    def file(self, path: str) -> SourceFile | None:
        """The file that ends in ``path``.

        Raises:
            DataError: there are several.
        """
        return _only(path, list(self._found(path)))

    def beside(self, path: str, other: str) -> SourceFile | None:
        """The file ``other`` in the very data set that the file ``path`` is of, which :meth:`file` finds.

        Raises:
            DataError: there are several.
        """
        whole = {place.removesuffix(path) + other for place in self._found(path).values()}
        loose = [SourceFile(root, name) for root in self.roots for name in whole if (root / name).is_file()]
        packed = (file for file, place in self._found_packed(other).items() if place in whole)
        return _only(other, loose or list(packed))

    def _found(self, path: str) -> dict[SourceFile, str]:
        """Files that end in ``path``, and their paths below the roots, in which archives are folders."""
        loose = {SourceFile(root, name): name for root, name in self._loose(path) if (root / name).is_file()}
        return loose or self._found_packed(path)

    def _found_packed(self, path: str) -> dict[SourceFile, str]:
        return {
            file: _joined(parent, file.name)
            for archive, parent in self._packed(path)
            for file in _files(archive, parent, path)
        }

    def has(self, path: str) -> bool:
        """Whether there is a file that ends in ``path``, or several."""
        return bool(self._found(path))

    def need_folder(self, path: str, archive: str) -> Folder:
        """As :meth:`folder`; DataError if it is not there, which names the ``archive`` it comes from."""
        return self._needed(self.folder(path), path, archive)

    def need_file(self, path: str, archive: str) -> SourceFile:
        """As :meth:`file`; DataError if it is not there, which names the ``archive`` it comes from."""
        return self._needed(self.file(path), path, archive)

    def _needed(self, part: _Place | None, path: str, archive: str) -> _Place:
        if part is not None:
            return part
        places = " or ".join(str(root / path) for root in self.roots)
        damaged = "".join(f" ({archive} {why})" for archive, why in self._unreadable.items())
        raise DataError(f"{places} is missing{damaged}; it comes from {archive}: {self._hint}")

    def _loose(self, path: str) -> Iterator[tuple[Path, str]]:
        """Existing paths on disk that end in ``path``: root and path below it, those less deep first."""
        for root in self.roots:
            for depth in range(_DEPTH):
                above = sorted(root.glob("*/" * depth)) if depth else [root]
                places = [(top / path).relative_to(root).as_posix() for top in above if (top / path).exists()]
                found = [place for place in places if not is_of_macos(place)]
                yield from ((root, place) for place in found)
                if found:
                    break

    def _packed(self, path: str) -> Iterator[tuple[Path, str]]:
        """Archives that may hold ``path``, and the folder that their content belongs into."""
        for archive, parent in self._archives():
            with self._noted(archive):
                readable = quick(archive)
                names = open_archive(readable).names()
                inner = [n for n in names if is_archive(n) and archive_stem(n) == PurePosixPath(path).name]
                yield readable, parent
                for name in inner:
                    with self._noted(archive / name):
                        file = unpacked(readable, name)
                        open_archive(file)
                        yield file, _joined(parent, _parent(name))

    @contextmanager
    def _noted(self, archive: Path) -> Iterator[None]:
        """Notes for :meth:`_needed` that an archive cannot be read; others may hold what is looked for."""
        try:
            yield
        except OSError as error:
            self._unreadable[archive] = error.strerror or str(error)

    def _archives(self) -> Iterator[tuple[Path, str]]:
        for root in self.roots:
            if root.is_file():
                yield root, ""
                continue
            for depth in range(2):
                files = (path for path in sorted(root.glob("*/" * depth + "*")) if path.is_file())
                for path in files:
                    if is_archive(path.name):
                        yield path, _parent(path.relative_to(root).as_posix())
                    elif path.name.lower().endswith(_OTHER_ARCHIVES):
                        self._unreadable[path] = "is an archive of a kind that is not read, unpack it"


def _only(path: str, found: list[_Place]) -> _Place | None:
    if len(found) > 1:
        places = ", ".join(_shown(place) for place in found)
        raise DataError(f"{path} is there more than once ({places}): name the right ones with --root")
    return found[0] if found else None


def _shown(place: Folder | SourceFile) -> str:
    return str(place.container / (place.prefix if isinstance(place, Folder) else place.name))


def _folders(archive: Path, parent: str, path: str) -> list[Folder]:
    prefixes = set()
    for name in open_archive(archive).names():
        whole = _joined(parent, name)
        end = f"/{whole}".find(f"/{path}/")
        if end >= 0:
            prefixes.add(whole[: end + len(path) + 1].removeprefix(f"{parent}/" if parent else ""))
    return [Folder(archive, prefix) for prefix in sorted(prefixes)]


def _files(archive: Path, parent: str, path: str) -> list[SourceFile]:
    names = open_archive(archive).names()
    return [SourceFile(archive, n) for n in names if f"/{_joined(parent, n)}".endswith(f"/{path}")]


def _parent(name: str) -> str:
    parent = PurePosixPath(name).parent.as_posix()
    return "" if parent == "." else parent


def _joined(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name
