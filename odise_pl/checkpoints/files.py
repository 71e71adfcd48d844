"""Checkpoint files of a run. Imports no torch."""

from __future__ import annotations

from pathlib import Path

LAST = "last.ckpt"
PREFIX = "model."  # of the network's weights in a run's checkpoint
MODEL, CONFIG = "model.safetensors", "config.json"  # of a published folder
PICKLED = "pytorch_model.bin"  # in place of MODEL in some folders of transformers


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


def find_checkpoint(path: str | Path) -> Path | None:
    """The checkpoint that a path means; None if there is none.

    Args:
        path: a run (its newest checkpoint), a published folder (its ``model.safetensors``), a folder of
            transformers, or a file.
    """
    path = Path(path)
    found = path if path.is_file() else last_checkpoint(path)
    return found or next((file for name in (MODEL, PICKLED) if (file := path / name).is_file()), None)
