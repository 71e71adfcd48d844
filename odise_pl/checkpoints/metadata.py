"""Metadata of a checkpoint, and the check that training can resume from it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odise_pl.checkpoints.files import PREFIX, saved_checkpoints
from odise_pl.checkpoints.official_names import preset_of, to_ours
from odise_pl.checkpoints.published import read_any_checkpoint
from odise_pl.checkpoints.weights import is_official
from odise_pl.models.weights import WeightsError
from odise_pl.vocabulary import Vocabulary

_NEEDED = ("optimizer_states", "lr_schedulers", "loops")


@dataclass(frozen=True)
class CheckpointDescription:
    """Metadata of a checkpoint; None where the file has none.

    Attributes:
        record: of its network, see :func:`~odise_pl.checkpoints.description.read_record`; None in files
            with weights only, such as the official release's.
        vocabulary: training classes.
        step: training step.
        preset: of its network as on the command line, from the names of the weights; of an official release.
    """

    record: dict[str, Any] | None
    vocabulary: Vocabulary | None
    step: int | None
    preset: str


def describe(path: str | Path) -> CheckpointDescription:
    """Read the metadata of a checkpoint.

    Raises:
        WeightsError: the file or its description is damaged.
    """
    return _describe(read_any_checkpoint(path), path)


def _describe(checkpoint: Mapping[str, Any], path: str | Path) -> CheckpointDescription:
    weights = checkpoint["model" if is_official(checkpoint, str(path)) else "state_dict"]
    preset = preset_of(to_ours(name) or name.removeprefix(PREFIX) for name in weights)
    step, kept = checkpoint.get("global_step", checkpoint.get("iteration")), checkpoint.get("odise")
    try:
        if step is not None and type(step) is not int:
            raise TypeError(f"step {step!a:.80} is not a whole number")
        if kept is None:
            return CheckpointDescription(None, None, step, preset)
        vocabulary = Vocabulary.from_json(kept["vocabulary"], kept["vocabulary"]["name"])
        return CheckpointDescription(dict(kept["record"]) or None, vocabulary, step, preset)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path}: its description is damaged ({error}); take another checkpoint"
        ) from error


def check_resumable(path: Path) -> int:
    """The step of a checkpoint that training resumes from.

    Raises:
        WeightsError: it is damaged, has no training state, or is not of this project; the message names an
            earlier intact checkpoint of the run, if there is one.
    """
    try:
        return _check_intact(path)
    except WeightsError as error:
        raise WeightsError(f"{error}{_suggest_earlier(path)}") from error


def _check_intact(path: Path) -> int:
    _verify_checksums(path)
    checkpoint = read_any_checkpoint(path)
    step = _describe(checkpoint, path).step
    if step is None or any(name not in checkpoint for name in _NEEDED):
        raise WeightsError(f"{path} has weights but no training state: start a new run with init_from={path}")
    return step


def _verify_checksums(path: Path) -> None:
    """Compare the checksums in the archive, which torch ignores."""
    if not zipfile.is_zipfile(path):
        return  # missing or truncated; read_checkpoint reports it
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged ({error})") from error
    if damaged is not None:
        raise WeightsError(f"{path} is damaged (wrong checksum of {damaged})")


def _suggest_earlier(path: Path) -> str:
    for other in saved_checkpoints(path.parent):
        if other.resolve() != path.resolve():
            try:
                step = _check_intact(other)
            except WeightsError:
                continue
            return f"; {other} of step {step} is intact: delete {path.name} to resume from it"
    return ""
