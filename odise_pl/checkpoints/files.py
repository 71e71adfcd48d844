"""Checkpoint files of a run. Imports no torch."""

from __future__ import annotations

from pathlib import Path

LAST = "last.ckpt"


def checkpoint_folder(run_dir: str | Path) -> Path:
    """The folder of a run's checkpoints."""
    return Path(run_dir, "checkpoints")


def saved_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of single steps (files or folders), newest first."""
    return sorted(folder.glob("step_*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def last_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run, links resolved; None if there is none."""
    folder = checkpoint_folder(run_dir)
    last = folder / LAST
    if last.exists():
        return last.parent / last.readlink() if last.is_symlink() else last
    return next(iter(saved_checkpoints(folder)), None)
