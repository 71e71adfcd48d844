"""Where a run keeps its checkpoints. Imports no torch."""

from __future__ import annotations

import shlex
from pathlib import Path

LAST = "last.ckpt"


def checkpoint_folder(run_dir: str | Path) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(run_dir, "checkpoints")


def saved_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of single steps, files or folders, the newest first."""
    return sorted(folder.glob("step_*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def last_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run; its own path, not that of the link to it."""
    folder = checkpoint_folder(run_dir)
    last = folder / LAST
    if last.exists():
        return last.parent / last.readlink() if last.is_symlink() else last
    return next(iter(saved_checkpoints(folder)), None)


def as_option(path: Path) -> str:
    """``ckpt=PATH`` as it has to be typed."""
    plain = str(path)
    return f"ckpt={plain}" if shlex.quote(plain) == plain and "=" not in plain else f"\"ckpt='{plain}'\""
