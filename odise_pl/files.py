"""Files that are written whole or not at all, and names that stay in their folder."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_NOT_PLAIN = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def is_plain_name(name: object) -> bool:
    """Whether what a file gives as a name is that of a file in a folder, and of nothing outside of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not _NOT_PLAIN.search(name)


def write_text(path: Path, text: str) -> None:
    """The same as :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the folder is missing, cannot be written or is full; a file that was there is as it was.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
