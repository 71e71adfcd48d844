"""Find pictures in files and folders. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.records import DataError

_log = logging.getLogger(__name__)
_RESULTS = ("_segments", "_ids")


def find_images(names: Sequence[str | Path]) -> dict[Path, Path]:
    """Pictures in order, by the relative path of their results without suffix.

    Folders are searched with their sub-folders, which the results keep. Hidden files and results of earlier
    predictions in folders are skipped.

    Args:
        names: files and folders.

    Raises:
        DataError: a name does not exist, or two pictures would have the same results.
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
        yield from ((picture, picture.relative_to(path).with_suffix("")) for picture in _pictures(path))
    elif path.exists():
        yield path, Path(path.stem)
    else:
        raise DataError(f"{path}: no such file or folder")


def _pictures(folder: Path) -> list[Path]:
    """All pictures in a folder, sorted."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_hidden(path, folder)]
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    others = sorted({path.suffix or path.name for path in set(files) - set(pictures)} - {".json"})
    if others:
        _log.warning("%s: skipped files that are not pictures (%s)", folder, ", ".join(others))
    pictures = [path for path in pictures if not _is_result(path)]
    if not pictures:
        raise DataError(f"{folder}: no picture in this folder or its sub-folders")
    return pictures


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def _is_result(path: Path) -> bool:
    """Whether a picture is a result of an earlier prediction."""
    bases = [path.stem.removesuffix(end) for end in _RESULTS if path.stem.endswith(end)]
    return any(path.with_name(f"{base}.json").is_file() for base in bases)
