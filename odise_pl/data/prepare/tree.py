"""Find the parts of a data set under its roots, in folders or archives. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from odise_pl.data.prepare.files import (
    SourceFile,
    files_below,
    is_archive,
    is_of_macos,
    open_archive,
    seekable,
)
from odise_pl.data.records import DataError

_DEPTH = 3  # levels of folders to search: archives often unpack into one or two extra folders
_OTHER_ARCHIVES = (".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".7z", ".rar")
_Place = TypeVar("_Place", "Folder", SourceFile)


@dataclass(frozen=True)
class Folder:
    """A folder on disk or in an archive.

    Attributes:
        container: see :class:`SourceFile`.
        prefix: path of the folder in the container with a final slash, or empty.
    """

    container: Path
    prefix: str

    @property
    def path(self) -> Path:
        """Its path on disk, below the archive's path if it is packed."""
        return self.container / self.prefix

    def file(self, name: str) -> SourceFile:
        """A file of the folder, which may be missing."""
        return SourceFile(self.container, self.prefix + name)

    def names(self) -> list[str]:
        """Relative paths of all files below the folder except those of macOS, sorted."""
        if is_archive(self.container):
            found = [name for name in open_archive(self.container).names if name.startswith(self.prefix)]
            return sorted(name.removeprefix(self.prefix) for name in found)
        loose = (path.relative_to(self.path).as_posix() for path in files_below(self.path))
        return sorted(name for name in loose if not is_of_macos(name))


class Tree:
    """The files under one or more roots: folders, which may contain archives, or archives.

    An archive counts as a folder with its content, but unpacked files and folders take precedence. A part of
    a data set may be a few folders deeper than expected.

    Args:
        roots: folders and archives.
        hint: where to download the data set, for messages.

    Raises:
        DataError: a root is neither a folder nor an archive.
    """

    def __init__(self, roots: Path | Sequence[Path], hint: str) -> None:
        self._hint = hint
        self.roots = (roots,) if isinstance(roots, Path) else tuple(roots)
        self._unreadable: dict[Path, str] = {}
        for root in self.roots:
            if not root.is_dir() and not is_archive(root):
                raise DataError(
                    f"{root} (--root) is neither a folder nor a zip, tar or tar.gz archive: {hint}"
                )

    def folder(self, path: str) -> Folder | None:
        """The folder whose path ends in ``path``; DataError if there are several."""
        loose = [Folder(root, f"{name}/") for root, name in self._loose(path) if (root / name).is_dir()]
        return _require_single(path, loose or list(self._packed_folders(path)))

    def file(self, path: str) -> SourceFile | None:
        """The file whose path ends in ``path``; DataError if there are several."""
        return _require_single(path, self._files(path))

    def has_file(self, path: str) -> bool:
        """Whether the path of any file ends in ``path``."""
        return bool(self._files(path))

    def beside(self, file: SourceFile, name: str) -> SourceFile | None:
        """The file ``name`` in the folder of another file; it may be in an archive."""
        parent = "" if file.container.is_dir() else self._archives[file.container]
        place = _join(parent, file.name).removesuffix(file.path.name) + name
        loose = [SourceFile(root, place) for root in self.roots if (root / place).is_file()]
        return _require_single(name, loose or self._packed_files(place, exact=True))

    def need_folder(self, path: str, archive: str) -> Folder:
        """Like :meth:`folder`, but DataError if missing, which names the ``archive`` to download."""
        return self._needed(self.folder(path), path, archive)

    def need_file(self, path: str, archive: str) -> SourceFile:
        """Like :meth:`file`, but DataError if missing, which names the ``archive`` to download."""
        return self._needed(self.file(path), path, archive)

    def _needed(self, part: _Place | None, path: str, archive: str) -> _Place:
        if part is not None:
            return part
        places = " or ".join(str(root / path) for root in self.roots)
        unreadable = "".join(f" ({one} {why})" for one, why in self._unreadable.items())
        raise DataError(f"{places} is missing{unreadable}; it comes from {archive}: {self._hint}")

    def _loose(self, path: str) -> Iterator[tuple[Path, str]]:
        """Existing paths on disk that end in ``path``, as root and relative path, at the smallest depth."""
        for root in self.roots:
            for depth in range(_DEPTH):
                above = sorted(root.glob("*/" * depth)) if depth else [root]
                places = [(top / path).relative_to(root).as_posix() for top in above if (top / path).exists()]
                found = [(root, place) for place in places if not is_of_macos(place)]
                yield from found
                if found:
                    break

    def _files(self, path: str) -> list[SourceFile]:
        loose = [SourceFile(root, name) for root, name in self._loose(path) if (root / name).is_file()]
        return loose or self._packed_files(path)

    def _packed_files(self, path: str, exact: bool = False) -> list[SourceFile]:
        """Files in archives whose path ends in ``path`` or, if ``exact``, equals it."""
        places = (
            (SourceFile(archive, name), f"/{_join(parent, name)}")
            for archive, parent in self._archives.items()
            for name in open_archive(archive).names
        )
        return [
            file for file, place in places if (place == f"/{path}" if exact else place.endswith(f"/{path}"))
        ]

    def _packed_folders(self, path: str) -> Iterator[Folder]:
        for archive, parent in self._archives.items():
            prefixes = set()
            for name in open_archive(archive).names:
                place = f"/{_join(parent, name)}"
                start = place.find(f"/{path}/")
                if start >= 0:
                    prefixes.add(
                        place[1 : start + len(path) + 2].removeprefix(f"{parent}/" if parent else "")
                    )
            yield from (Folder(archive, prefix) for prefix in sorted(prefixes))

    @cached_property
    def _archives(self) -> dict[Path, str]:
        """The readable archives, each with its folder relative to its root."""
        found = {}
        for root in self.roots:
            paths = [root] if root.is_file() else sorted([*root.glob("*"), *root.glob("*/*")])
            for path in paths:
                try:
                    if is_archive(path):
                        open_archive(readable := seekable(path))
                        parent = path.relative_to(root).parent.as_posix()
                        found[readable] = "" if parent == "." else parent
                    elif path.name.lower().endswith(_OTHER_ARCHIVES) and path.is_file():
                        self._unreadable[path] = "is an unsupported kind of archive, unpack it"
                except OSError as error:  # other archives may have the part
                    self._unreadable[path] = error.strerror or str(error)
        return found


def _require_single(path: str, found: Sequence[_Place]) -> _Place | None:
    if len(found) > 1:
        places = ", ".join(str(place.path) for place in found)
        raise DataError(f"found {path} more than once ({places}); choose one with --root")
    return found[0] if found else None


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name
