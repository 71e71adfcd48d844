"""Find the parts of a data set under its roots, in folders or zip archives. Imports no torch."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from odise_pl.data import fields
from odise_pl.data.prepare.files import SourcePath, is_of_macos, is_zip, open_zip, zip_members
from odise_pl.data.records import DataError, prefix_errors

_DEPTH = 3  # levels of folders to search: archives often unpack into one or two extra folders
_OTHER_ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def parse_subpath(option: str, path: str) -> str:
    """Check the value of an option that names a path below a root."""
    with prefix_errors(option):
        return fields.plain_path(path)


class Tree:
    """The files under one or more roots: folders, which may contain zip archives, or zip archives.

    An archive counts as a folder with its content, but unpacked files and folders take precedence. A part of
    a data set may be a few folders deeper than expected.

    Args:
        roots: folders and zip archives.
        hint: where to download the data set, for messages.

    Raises:
        DataError: a root is neither a folder nor a zip archive.
    """

    def __init__(self, roots: Path | Sequence[Path], hint: str) -> None:
        self._hint = hint
        self.roots = (roots,) if isinstance(roots, Path) else tuple(roots)
        self._unreadable: list[str] = []
        for root in self.roots:
            if not root.is_dir() and not is_zip(root):
                raise DataError(f"{root} (--root) is neither a folder nor a zip archive: {hint}")

    def find(self, path: str) -> SourcePath | None:
        """The file or folder whose path ends in ``path``; DataError if there are several."""
        found = self._loose(path) or self._packed(path)
        if len(found) > 1:
            places = ", ".join(str(place.path) for place in found)
            raise DataError(f"found {path} more than once ({places}); choose one with --root")
        return found[0] if found else None

    def need(self, path: str, archive: str) -> SourcePath:
        """Like :meth:`find`, but DataError if missing, which names the ``archive`` to download."""
        found = self.find(path)
        if found is None:
            places = " or ".join(str(root / path) for root in self.roots)
            unreadable = "".join(f" ({cause})" for cause in self._unreadable)
            raise DataError(f"{places} is missing{unreadable}; it comes from {archive}: {self._hint}")
        return found

    def folder(self, split: str | None) -> SourcePath:
        """The folder that ``--split`` names, or the only root; DataError if there is none."""
        if split is not None:
            return self.need(parse_subpath("--split", split), "your data set")
        if len(self.roots) > 1 or not self.roots[0].is_dir():
            raise DataError("--root: give one folder, or name a folder in it with --split")
        root = self.roots[0].absolute()
        return SourcePath(root.parent, root.name)

    def _loose(self, path: str) -> list[SourcePath]:
        """What exists on disk, at the smallest depth of each root."""
        found = []
        for root in self.roots:
            for depth in range(_DEPTH):
                matches = sorted(root.glob("*/" * depth + glob.escape(path)))
                names = [match.relative_to(root).as_posix() for match in matches]
                if names := [name for name in names if not is_of_macos(name)]:
                    found += [SourcePath(root, name) for name in names]
                    break
        return found

    def _packed(self, path: str) -> list[SourcePath]:
        """What exists in archives; the path may begin in the folder of the archive."""
        found: dict[SourcePath, None] = {}  # a set that keeps the order
        for archive, above in self._archives.items():
            for name in zip_members(archive):
                place = f"{above}{name}/"
                start = place.find(f"/{path}/")
                if start >= 0:
                    end = start + len(f"/{path}")
                    found[SourcePath(archive, place[len(above) : end])] = None
        return list(found)

    @cached_property
    def _archives(self) -> dict[Path, str]:
        """The readable archives, each with its folder relative to its root: ``/`` or ``/FOLDER/``."""
        found = {}
        for root in self.roots:
            paths = [root] if root.is_file() else sorted([*root.glob("*"), *root.glob("*/*")])
            for path in paths:
                try:
                    if is_zip(path):
                        open_zip(path)
                        parent = path.relative_to(root).parent.as_posix()
                        found[path] = "/" if parent == "." else f"/{parent}/"
                    elif path.name.lower().endswith(_OTHER_ARCHIVES) and path.is_file():
                        self._unreadable.append(f"{path} must be unpacked")
                except DataError as error:  # other archives may have the part
                    self._unreadable.append(str(error))
        return found
