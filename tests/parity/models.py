"""The network that a case describes, with its three files of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from odise_pl.checkpoints.io import load_trainable_state, load_weights, recognise
from odise_pl.checkpoints.official_names import to_ours
from odise_pl.files import is_plain_name
from odise_pl.models.build import (
    BackboneSettings,
    ClipSettings,
    HeadSettings,
    build_odise,
    empty_captioner,
    implicit_captioner,
)
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import ClassifierSettings, Odise
from odise_pl.models.weights import read_checkpoint, tensors_of
from tests.parity.architecture import (
    clip_architecture,
    diffusion_architecture,
    head_settings,
    pyramid_channels,
)
from tests.parity.decisions import DecidingMaskDecoder
from tests.parity.records import Case, RecordError

DIFFUSION_MARK, CLIP_MARK = "model.diffusion_model.", "visual.conv1.weight"
_TIME = ("backbone.captioner.alpha_time", "backbone.captioner.time_project.")
FUSION = {"label": ("{}", 0.3, 0.7), "caption": ("a photo of a {}.", 0.35, 0.65)}


@dataclass(frozen=True)
class WeightFiles:
    """Where weights are; None is looked for among the records.

    Attributes:
        checkpoint: for cases that name none; or the folder of those that cases name.
        diffusion: original Stable Diffusion checkpoint.
        clip: with open_clip's names.
    """

    checkpoint: Path | None = None
    diffusion: Path | None = None
    clip: Path | None = None


def checkpoint_of(case: Case, files: WeightFiles) -> Path:
    """The trained weights of a case: what its JSON names, else what the command line names.

    Raises:
        RecordError: neither is there.
    """
    named = case.facts.get("weights")
    if named is not None and not is_plain_name(named):
        raise RecordError(f"case {case.name}: weights {named!r} is not the name of a file")
    beside = [_folder(files.checkpoint)] if files.checkpoint else []
    candidates = [folder / named for folder in (case.folder, *beside)] if named else []
    candidates += [files.checkpoint] if files.checkpoint else []
    for path in candidates:
        if path.is_file():
            return path
    raise RecordError(
        f"case {case.name}: "
        + (f"its weights {named} are not in {case.folder}" if named else "its JSON names no weights")
        + "; name the file with --weights FILE"
    )


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def frozen_files(folder: Path, files: WeightFiles) -> tuple[Path, Path]:
    """The diffusion model's and CLIP's file: as named, else the one in the folder that holds such weights.

    Raises:
        RecordError: there is none.
    """
    return (
        files.diffusion or _search(folder, files, DIFFUSION_MARK, "diffusion"),
        files.clip or _search(folder, files, CLIP_MARK, "clip"),
    )


def _search(folder: Path, files: WeightFiles, mark: str, option: str) -> Path:
    folders = [folder, *([_folder(files.checkpoint)] if files.checkpoint else [])]
    for place in folders:
        for path in sorted(place.glob("*.safetensors")):
            if any(name.startswith(mark) for name in _names(path)):
                return path
    raise RecordError(f"{folder} has no weights with {mark}*; name the file with --{option} FILE")


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True)
class _Build:
    """Everything that makes two cases share a network."""

    checkpoint: Path
    diffusion: Path
    clip: Path
    supervision: str
    steps: tuple[int, ...]
    input_size: int
    learnable_time: bool


def model_of(case: Case, files: WeightFiles, input_size: int | None = None) -> Odise:
    """The network of a case in eval mode, with ``published_quirks``; cases that describe the same share it.

    Args:
        case: its JSON says supervision, steps, window size and whether the time embedding is learnt.
        files: see :class:`WeightFiles`.
        input_size: for a case that says no window size.
    """
    diffusion, clip = frozen_files(case.folder, files)
    supervision = case.fact("model")
    if supervision not in FUSION:
        raise RecordError(f"case {case.name}: model '{supervision}' is neither label nor caption")
    wanted = _Build(
        checkpoint_of(case, files),
        diffusion,
        clip,
        supervision,
        tuple(case.fact("steps")),
        input_size or _side(case),
        bool(case.facts.get("learnable_time_embed", True)),
    )
    model = _build(wanted).eval()
    _decoder(model).reset()
    model.zero_grad(set_to_none=True)
    return model


def _side(case: Case) -> int:
    size = case.fact("backbone_in_size")
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise RecordError(f"case {case.name}: backbone_in_size {size} is not square")
    return int(sides.pop())


def _decoder(model: Odise) -> DecidingMaskDecoder:
    decoder = model.mask_decoder
    assert isinstance(decoder, DecidingMaskDecoder)
    return decoder


@cache
def _build(wanted: _Build) -> Odise:
    state = _own_names(wanted.checkpoint)
    head = head_settings(state)
    prompt, seen, unseen = FUSION[wanted.supervision]
    captioner = any(name.startswith("backbone.captioner.") for name in state)
    model = build_odise(
        BackboneSettings(
            weights=str(wanted.diffusion),
            architecture=diffusion_architecture(tensors_of(read_checkpoint(wanted.diffusion))),
            timesteps=wanted.steps,
            input_size=wanted.input_size,
            window=wanted.input_size,
            channels=pyramid_channels(state),
        ),
        ClipSettings(
            str(wanted.clip), architecture=clip_architecture(tensors_of(read_checkpoint(wanted.clip)))
        ),
        implicit_captioner(wanted.learnable_time) if captioner else empty_captioner(),
        head,
        ClassifierSettings(seen_share=seen, unseen_share=unseen, mask_prompt=prompt),
        InferenceSettings(),
        wanted.supervision,
        published_quirks=True,
    )
    model.mask_decoder = deciding(head, wanted.supervision)
    if wanted.learnable_time:
        load_weights(model, wanted.checkpoint)
    else:  # a network without them can be made of weights that have them
        kept = {name: value for name, value in state.items() if not name.startswith(_TIME)}
        load_trainable_state(model, kept, str(wanted.checkpoint))
    return model


def deciding(head: HeadSettings, supervision: str) -> DecidingMaskDecoder:
    """A mask decoder of these sizes whose close decisions can be given."""
    return DecidingMaskDecoder(
        head.channels,
        head.mask_channels,
        head.embed_dim,
        head.queries,
        head.layers,
        head.heads,
        head.feedforward,
        object_head=supervision == "caption",
    )


def _own_names(checkpoint: Path) -> dict[str, Tensor]:
    """The trained weights by our names, whichever format the file has."""
    data: Mapping[str, Any] = read_checkpoint(checkpoint)
    if recognise(data, str(checkpoint)) == "ours":
        return {name.removeprefix("model."): value for name, value in data["state_dict"].items()}
    named = {to_ours(name): value for name, value in data["model"].items()}
    return {name: value for name, value in named.items() if name is not None}


def flat_names(labels: Sequence[Sequence[str] | str]) -> list[list[str]]:
    """Names per class; a class given as one string has one name."""
    return [[names] if isinstance(names, str) else list(names) for names in labels]


def seen_shares(model: Odise, test: Sequence[Sequence[str]], train: Sequence[Sequence[str]]) -> Tensor:
    """CLIP's share per test class: a class with a string among the training strings counts as seen."""
    known = {name for names in train for name in names}
    settings = model.classifier
    return torch.tensor(
        [settings.seen_share if known & set(names) else settings.unseen_share for names in test]
    )
