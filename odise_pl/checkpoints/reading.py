"""What a checkpoint says of itself, and whether training can resume from it: whole, or refused."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odise_pl.checkpoints.files import as_option, saved_checkpoints
from odise_pl.checkpoints.io import recognise
from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.models.weights import WeightsError, read_checkpoint
from odise_pl.vocabulary import Vocabulary

_NEEDED = ("optimizer_states", "lr_schedulers", "loops")


@dataclass(frozen=True)
class CheckpointDescription:
    """What a checkpoint says of itself: the run's record, training classes, steps; None if silent.

    Attributes:
        batch_size: images of a forward pass on a device.
    """

    record: dict[str, Any] | None
    vocabulary: Vocabulary | None
    step: int | None
    batch_size: int | None = None


def describe(path: str | Path) -> CheckpointDescription:
    """Read the description in a checkpoint; official checkpoints have none.

    Raises:
        WeightsError: the file or its description is damaged. What the record holds is checked by who uses it.
    """
    checkpoint = read_checkpoint(path)
    try:
        return _description(checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: what it says of itself is damaged ({error}); take another") from error


def _description(checkpoint: Mapping[str, Any]) -> CheckpointDescription:
    kept, step = checkpoint.get("odise"), checkpoint.get("global_step", checkpoint.get("iteration"))
    if step is not None and type(step) is not int:  # folders are named by it
        raise TypeError(f"step {step!a:.80} is not a whole number")
    if kept is None:
        return CheckpointDescription(None, None, step)
    vocabulary = Vocabulary.from_json(kept["vocabulary"], kept["vocabulary"]["name"])
    batch_size = (checkpoint.get(PanopticDataModule.__name__) or {}).get("batch_size")
    if batch_size is not None and type(batch_size) is not int:
        raise TypeError(f"batch_size {batch_size!a:.80} is not a whole number")
    record = dict(kept["record"])
    if "training" in record:
        dict(record["training"]["optimizer"])  # what a resumed run is compared with
    return CheckpointDescription(record or None, vocabulary, step, batch_size)


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
