"""Build the network of a case from its three files of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from odise_pl.checkpoints.official_names import to_official, to_ours
from odise_pl.checkpoints.weights import is_official, load_trainable_state, load_weights, trainable_parameters
from odise_pl.models.build import BackboneSettings, ClipSettings, build_odise, implicit_captioner
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import Odise
from odise_pl.models.weights import read_checkpoint
from odise_pl.vocabulary import Category, Vocabulary
from tests.parity.predictions import RecordedThresholds
from tests.parity.records import Case, RecordError
from tests.parity.sizes import sizes_of

DIFFUSION_MARK, CLIP_MARK = "model.diffusion_model.", "visual.conv1.weight"
CLASSIFIERS = {
    "label": ClassifierSettings(seen_share=0.3, unseen_share=0.7, mask_prompt="{}"),
    "caption": ClassifierSettings(seen_share=0.35, unseen_share=0.65, mask_prompt="a photo of a {}."),
}
_TIME = ("backbone.captioner.alpha_time", "backbone.captioner.time_project.")


def model_of(case: Case, weights: Path | None, input_size: int | None = None) -> Odise:
    """The network of a case in eval mode, with ``published_quirks``; equal cases share it.

    Args:
        case: names supervision, steps, window size and whether the time embedding is learned.
        weights: checkpoint of cases that name none; files that cases name may be beside it.
        input_size: for cases without a window size.
    """
    supervision = case.fact("model")
    if supervision not in CLASSIFIERS:
        raise RecordError(f"model '{supervision}' is neither label nor caption")
    model = _build(
        _checkpoint_of(case, weights),
        *frozen_files(case.folder, weights),
        supervision,
        tuple(case.fact("steps")),
        input_size or input_side(case),
        bool(case.facts.get("learnable_time_embed", True)),
    )
    model.zero_grad(set_to_none=True)
    return model.eval()


def _checkpoint_of(case: Case, weights: Path | None) -> Path:
    """The file that the case names, beside the case or beside ``weights``; else ``weights``."""
    named = case.facts.get("weights")
    candidates = [folder / named for folder in _folders(case.folder, weights) if named]
    path = next((path for path in [*candidates, weights] if path is not None and path.is_file()), None)
    if path is None:
        raise RecordError(f"its weights {named} are not in {case.folder}; name the file with --weights FILE")
    return path


def frozen_files(folder: Path, weights: Path | None) -> tuple[Path, Path]:
    """Files of the diffusion model and CLIP, in the folder or beside ``weights``."""
    diffusion, clip = (_file_with(mark, _folders(folder, weights)) for mark in (DIFFUSION_MARK, CLIP_MARK))
    return diffusion, clip


def _folders(folder: Path, weights: Path | None) -> list[Path]:
    return [folder, *([weights.parent] if weights else [])]


def _file_with(mark: str, folders: Sequence[Path]) -> Path:
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        with safe_open(path, framework="pt") as file:
            if any(name.startswith(mark) for name in file.keys()):  # noqa: SIM118
                return path
    raise RecordError(f"no .safetensors file in {folders[0]} has weights {mark}*; put the file there")


def input_side(case: Case) -> int:
    """Side of the diffusion model's input."""
    height, width = case.fact("backbone_in_size")
    assert height == width
    return int(height)


@cache
def _build(
    checkpoint: Path,
    diffusion: Path,
    clip: Path,
    supervision: str,
    steps: tuple[int, ...],
    input_size: int,
    learnable_time: bool,
) -> Odise:
    sizes = sizes_of(diffusion)
    model = build_odise(
        BackboneSettings(
            str(diffusion),
            sizes.diffusion,
            steps,
            input_size=input_size,
            window=input_size,
            channels=sizes.channels,
        ),
        ClipSettings(str(clip), architecture=sizes.clip),
        implicit_captioner(learnable_time),
        sizes.head,
        CLASSIFIERS[supervision],
        InferenceSettings(),
        supervision,
        published_quirks=True,
    )
    decoder = {name: value for name, value in vars(sizes.head).items() if not name.startswith("pixel_")}
    model.mask_decoder = RecordedThresholds(**decoder, object_head=supervision == "caption")
    if learnable_time:
        load_weights(model, checkpoint)
    else:  # the weights may include a time embedding
        state = _by_our_names(checkpoint)
        kept = {name: value for name, value in state.items() if not name.startswith(_TIME)}
        load_trainable_state(model, kept, str(checkpoint))
    return model


def _by_our_names(checkpoint: Path) -> dict[str, Tensor]:
    data: Mapping[str, Any] = read_checkpoint(checkpoint)
    if not is_official(data, str(checkpoint)):
        return {name.removeprefix("model."): value for name, value in data["state_dict"].items()}
    named = {to_ours(name): value for name, value in data["model"].items()}
    return {name: value for name, value in named.items() if name is not None}


def official_parameters(model: nn.Module, supervision: str) -> dict[str, nn.Parameter]:
    """Trainable parameters by their official names."""
    named = ((to_official(name, supervision), p) for name, p in trainable_parameters(model).items())
    return {official: parameter for official, parameter in named if official is not None}


def vocabulary(labels: Sequence[Sequence[str] | str], things: Sequence[int] = ()) -> Vocabulary:
    """A vocabulary of recorded labels: one name, or several, per class."""
    names = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in labels]
    return Vocabulary("the record", tuple(Category(i, n[0], n[1:], i in things) for i, n in enumerate(names)))
