"""Find pictures by files, folders and patterns. Imports no torch."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from odise_pl.data.images import IMAGE_SUFFIXES
from odise_pl.data.records import DataError

_log = logging.getLogger(__name__)
_RESULTS = ("_segments", "_ids")


def find_images(names: Sequence[str | Path]) -> dict[Path, Path]:
    """Pictures in order, by the relative path of their results without suffix.

    Results are named after their picture, including its suffix if another picture differs only in that. The
    sub-folders of a folder are kept. Duplicates, hidden files and earlier results in folders are skipped.

    Args:
        names: files, folders (searched with their sub-folders), or glob patterns if no such path exists.

    Raises:
        DataError: a name matches nothing, or two pictures would have the same results.
    """
    named = {Path(path).absolute(): (path, result) for name in names for path, result in _named(name)}
    times = Counter(result for _, result in named.values())
    found: dict[Path, Path] = {}
    for path, result in named.values():
        place = result if times[result] == 1 else result.with_name(path.name)
        if place in found:
            raise DataError(
                f"the results of {found[place]} and {path} would overwrite each other: give the parent "
                "folder of both, or run the command twice with different --out"
            )
        found[place] = path
    return found


def _named(name: str | Path) -> Iterator[tuple[Path, Path]]:
    given = [Path(name)] if os.path.exists(name) else _matches(Path(name))  # noqa: PTH110 (of any length)
    if not given:
        raise DataError(f"{name}: no such file or folder, and no file matches this pattern")
    for path in given:
        if path.is_dir():
            yield from ((picture, picture.relative_to(path).with_suffix("")) for picture in _pictures(path))
        else:
            yield path, Path(path.stem)


def _matches(pattern: Path) -> list[Path]:
    """The paths that match a pattern; existing folders in it are taken literally, even with brackets."""
    root = next((folder for folder in pattern.parents if folder.is_dir()), None)
    if root is None:
        return []
    found = glob.glob(str(pattern.relative_to(root)), root_dir=root, recursive=True)  # noqa: PTH207 (hides dot files)
    return sorted(path for path in (root / name for name in found) if path.exists())


def _pictures(folder: Path) -> list[Path]:
    """All pictures in a folder, sorted; links are followed."""
    files = [path for path in _files(folder) if not _is_result(path)]
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not pictures:
        raise DataError(f"{folder}: no picture in this folder or its sub-folders")
    others = sorted({path.suffix or path.name for path in set(files) - set(pictures)})
    if others:
        _log.warning("%s: skipped files that are not pictures (%s)", folder, ", ".join(others))
    return pictures


def _files(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()  # links may be circular
    for place, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        shown = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        folders[:] = [name for name in shown if os.path.realpath(Path(place, name)) not in seen]
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _is_result(path: Path) -> bool:
    """Whether a file is a result of an earlier prediction."""
    base = next((path.stem.removesuffix(end) for end in _RESULTS if path.stem.endswith(end)), path.stem)
    written = {path.with_name(f"{base}{end}") for end in ("_ids.png", ".json")}
    return (base != path.stem or path.suffix == ".json") and all(file.is_file() for file in written)
