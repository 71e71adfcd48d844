"""Find pictures by files, folders and patterns. Imports no torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.records import DataError

_log = logging.getLogger(__name__)
_RESULTS = ("_segments", "_ids")
_PATTERN = re.compile(r"[*?\[]")


def find_images(names: Sequence[str | Path]) -> dict[Path, Path]:
    """Pictures in order, by the relative path of their results without suffix.

    Folders are searched with their sub-folders, which the results keep, as they keep those of a pattern.
    Hidden files and results of earlier predictions in folders are skipped.

    Args:
        names: files, folders, and patterns such as ``photos/**/*.jpg``, where ``**`` is any sub-folders.

    Raises:
        DataError: a name does not exist, a folder or pattern has no picture, or two pictures would have the
            same results.
    """
    found: dict[Path, Path] = {}
    for path, result in (pair for name in names for pair in _named(Path(name))):
        other = found.setdefault(result, path)
        if other.absolute() != path.absolute():
            raise DataError(
                f"the results of {other} and {path} would overwrite each other: give the parent folder of "
                "both, or run the command twice with different --out"
            )
    return found


def _named(path: Path) -> Iterator[tuple[Path, Path]]:
    if path.is_dir():
        yield from _in_folder(path, path.rglob("*"), path)
    elif path.exists():
        yield path, Path(path.stem)
    elif _PATTERN.search(str(path)):
        yield from _in_folder(*_matches(path), path)
    else:
        raise DataError(f"{path}: no such file or folder")


def _matches(pattern: Path) -> tuple[Path, Iterator[Path]]:
    """The folder before the pattern, and the files that match or are in folders that match."""
    fixed = next(i for i, part in enumerate(pattern.parts) if _PATTERN.search(part))
    folder, rest = Path(*pattern.parts[:fixed]), str(Path(*pattern.parts[fixed:]))
    return folder, (
        file
        for match in folder.glob(rest)
        for file in (match.rglob("*") if match.is_dir() and not match.is_symlink() else [match])
    )


def _in_folder(folder: Path, paths: Iterable[Path], name: Path) -> Iterator[tuple[Path, Path]]:
    """The pictures among paths in a folder, sorted, and their results; ``name`` is for messages."""
    for picture in _pictures(folder, sorted(set(paths)), name):
        yield picture, picture.relative_to(folder).with_suffix("")


def _pictures(folder: Path, paths: Iterable[Path], name: Path) -> list[Path]:
    files = [path for path in paths if path.is_file() and not _is_hidden(path, folder)]
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    others = sorted({path.suffix or path.name for path in set(files) - set(pictures)} - {".json"})
    if others:
        _log.warning("%s: skipped files that are not pictures (%s)", name, ", ".join(others))
    pictures = [path for path in pictures if not _is_result(path)]
    if not pictures:
        what = "no picture in this folder or its sub-folders"
        raise DataError(f"{name}: {what if name.is_dir() else 'no picture matches this pattern'}")
    return pictures


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def _is_result(path: Path) -> bool:
    """Whether a picture is a result of an earlier prediction."""
    bases = [path.stem.removesuffix(end) for end in _RESULTS if path.stem.endswith(end)]
    return any(path.with_name(f"{base}.json").is_file() for base in bases)
