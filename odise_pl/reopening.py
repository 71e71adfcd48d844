"""Checkpoints that a run is to go on from: whole and of this kind, or refused with the one to take."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from odise_pl.checkpoint import recognise
from odise_pl.lightning_module import CheckpointDescription, describe
from odise_pl.resumption import as_option, saved_checkpoints
from odise_pl.weights import WeightsError, read_checkpoint

_NEEDED = ("optimizer_states", "lr_schedulers", "loops")


def description_of(path: Path) -> CheckpointDescription:
    """What a checkpoint that training is to go on from says of itself.

    Raises:
        WeightsError: it is damaged, holds weights alone, or is not of this project; the message names an
            earlier one of the same run that can be taken, if there is one.
    """
    try:
        return _whole(path)
    except WeightsError as error:
        raise WeightsError(f"{error}{_earlier(path)}") from error


def _whole(path: Path) -> CheckpointDescription:
    if path.is_file():
        _refuse_damage(path)
        checkpoint = read_checkpoint(path)
        recognise(checkpoint, str(path))
        if any(name not in checkpoint for name in _NEEDED):
            raise WeightsError(
                f"{path} holds weights and no state of training: start a new run with init_from={path}"
            )
    return describe(path)


def _refuse_damage(path: Path) -> None:
    """Checksums of all that an archive holds: torch does not look at them."""
    if not zipfile.is_zipfile(path):
        return  # what is cut off is none any more; said by what reads it
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged ({error})") from error
    if damaged is not None:
        raise WeightsError(f"{path} is damaged (checksum of {damaged})")


def _earlier(path: Path) -> str:
    for other in saved_checkpoints(path.parent):
        if other.resolve() != path.resolve():
            try:
                step = _whole(other).step
            except WeightsError:
                continue
            return f"; the one of step {step} is whole, go on from it with {as_option(other)}"
    return ""
