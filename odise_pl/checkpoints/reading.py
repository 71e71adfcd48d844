"""What a checkpoint says of itself, and whether training can resume from it: whole, or refused."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odise_pl.checkpoints.files import as_option, saved_checkpoints
from odise_pl.checkpoints.io import PREFIX, recognise
from odise_pl.checkpoints.official_names import supervision_of, to_ours
from odise_pl.models.weights import WeightsError, read_checkpoint
from odise_pl.vocabulary import Vocabulary

_NEEDED = ("optimizer_states", "lr_schedulers", "loops")


@dataclass(frozen=True)
class CheckpointDescription:
    """What a checkpoint says of itself; None where it does not.

    Attributes:
        record: of its network, see :func:`~odise_pl.checkpoints.description.read_record`; None in files of
            weights alone, such as the official release's.
        vocabulary: classes that it was trained on.
        step: of training.
        digest: sha256 of its trained weights.
        batch_size: images of a forward pass on a device.
        supervision: ``label`` or ``caption``, by the names of its weights.
    """

    record: dict[str, Any] | None
    vocabulary: Vocabulary | None
    step: int | None
    digest: str
    batch_size: int | None
    supervision: str


def describe(path: str | Path) -> CheckpointDescription:
    """Read the description in a checkpoint.

    Raises:
        WeightsError: the file or its description is damaged.
    """
    checkpoint = read_checkpoint(path)
    recognise(checkpoint, str(path))
    try:
        return _description(checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path}: its description is damaged ({error}); take another checkpoint"
        ) from error


def _description(checkpoint: Mapping[str, Any]) -> CheckpointDescription:
    weights: Mapping[str, Tensor] = checkpoint.get("state_dict") or checkpoint["model"]
    step = checkpoint.get("global_step", checkpoint.get("iteration"))
    batch_size = (checkpoint.get("PanopticDataModule") or {}).get("batch_size")
    for name, value in (("step", step), ("batch_size", batch_size)):
        if value is not None and type(value) is not int:
            raise TypeError(f"{name} {value!a:.80} is not a whole number")
    kept = checkpoint.get("odise")
    vocabulary = (
        None if kept is None else Vocabulary.from_json(kept["vocabulary"], kept["vocabulary"]["name"])
    )
    record = None if kept is None else dict(kept["record"]) or None
    names = [to_ours(name) or name.removeprefix(PREFIX) for name in weights]
    return CheckpointDescription(
        record, vocabulary, step, _digest(weights), batch_size, supervision_of(names)
    )


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
