"""Atomic writing of files, and safe file names."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_NOT_PLAIN = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_WEIGHT_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt", ".bin", ".tar", ".pyth")


def is_plain_name(name: object) -> bool:
    """Whether a name read from a file is a plain file name, which cannot point outside its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not _NOT_PLAIN.search(name)


def is_path(weights: str) -> bool:
    """Whether weights are a file or folder, perhaps a missing one; else they are ``random`` or a hub id."""
    folder = weights.rpartition("/")[0]
    return (
        weights.endswith(_WEIGHT_SUFFIXES)
        or weights.startswith(("${paths.", "/", ".", "~"))
        or "/" in folder
        or os.path.isdir(folder)  # noqa: PTH112 (any text)
    )


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary binary file that replaces ``path`` at the end of the block, flushed to disk.

    Raises:
        OSError: the folder is missing, not writable or full. After any error ``path`` is unchanged.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file with :func:`atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole file in UTF-8 with :func:`atomic_write`."""
    write_bytes(path, text.encode())
