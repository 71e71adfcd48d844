"""Weights that this project uses and does not contain: where they come from, and their licences.

The table is ``weights.csv``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odise_pl.errors import SettingError
from odise_pl.hub.download import download_repository, download_url, verify_sha256


@dataclass(frozen=True)
class Weights:
    """A file or folder of weights.

    Attributes:
        target: its name in the folder of weights, as in ``conf/``.
        source: an address, or the name of a repository of the Hub.
        licence: of the weights.
        size: in 10^9 bytes, about.
        purpose: the setting that uses it.
        sha256: its beginning; empty if only the Hub knows it.
        file: its name in the repository; empty for that of the target.
    """

    target: str
    source: str
    licence: str
    size: float
    purpose: str
    sha256: str = ""
    file: str = ""


def _read_table() -> dict[str, Weights]:
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return {row.pop("name"): Weights(**row | {"size": float(row["size"])}) for row in rows}


WEIGHTS = _read_table()


def fetch(name: str, folder: Path) -> Path:
    """Download weights unless they are there; an interrupted download resumes.

    Args:
        name: in :data:`WEIGHTS`, perhaps with underscores for hyphens, as in ``conf/backbone``.
        folder: of weights; made if it is missing.

    Returns:
        the file, or the folder of a model of several files.

    Raises:
        DownloadError: the server cannot be reached or refuses, or a checksum differs; nothing is kept under
            the final name then.
        SettingError: the name is unknown, or the folder cannot be written.
    """
    known = next((one for one in (name, name.replace("_", "-")) if one in WEIGHTS), None)
    if known is None:
        raise SettingError(f"{name}: no such weights; choose {', '.join(WEIGHTS)}")
    weights, target = WEIGHTS[known], folder / WEIGHTS[known].target
    is_address = weights.source.startswith("http")
    print(f"{name}: {weights.source if is_address else 'huggingface.co/' + weights.source}")
    print(f"licence: {weights.licence}. By using the weights you accept it.")
    if target.exists():
        if target.is_file() and weights.sha256:
            verify_sha256(target, weights.sha256)
        print(f"{target} is already there")
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--folder {folder}: {error}") from error
    if is_address:
        download_url(weights.source, target, weights.sha256)
    else:
        download_repository(weights.source, target, weights.sha256, weights.file)
    print(f"written: {target}")
    return target


def describe_weights(folder: Path) -> str:
    """All weights in lines of text: size, whether they are in a folder, licence, purpose."""
    lines = []
    for name, weights in WEIGHTS.items():
        path = folder / weights.target
        size = _size(path) or f"about {weights.size} GB, missing"
        lines += [f"{name:20} {size:24} {weights.licence}", f"{'':20} {path} (for {weights.purpose})"]
    return "\n".join([*lines, "fetch what is missing with: odise weights fetch NAME"])


def _size(path: Path) -> str:
    """The size of a file or folder; empty if it is missing."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB" if files else ""


def find_weights(path: str) -> Weights | None:
    """The weights with the file name of ``path``; None if they are others."""
    return next((weights for weights in WEIGHTS.values() if weights.target == Path(path).name), None)
