"""Trainable weights in checkpoints: this project's (of runs, or published) and the official release's.

Checkpoints have no frozen weights. Trainable weights are loaded completely or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odise_pl.checkpoints.files import PREFIX
from odise_pl.checkpoints.official_names import UNUSED, preset_of, to_official, to_ours
from odise_pl.checkpoints.published import read_any_checkpoint
from odise_pl.files import atomic_write
from odise_pl.models.weights import WeightsError, list_first, mismatches, require_finite

NO_OBJECT_WEIGHT = 0.1
_OWN = (f"{PREFIX}pixel_decoder.", f"{PREFIX}backbone.model.vision_model.")  # of ODISE, of GroupViT
_WAY_OUT = (
    "use the settings it was trained with (method, model=odise_label or odise_caption, model.head, backbone, "
    "captioner, backbone.timesteps, fusion.word_vectors), or download the file again if it is incomplete"
)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in parameters if parameter.requires_grad}


def load_trainable_state(
    model: nn.Module, state: Mapping[str, Tensor], source: str, new_part: str | None = None
) -> None:
    """Set every trainable parameter.

    Args:
        model: the network.
        state: by the network's own names.
        source: named in errors.
        new_part: a part that keeps its values if ``state`` has none of it.

    Raises:
        WeightsError: names or shapes do not fit, or a value is not finite; the message names ``source`` and
            the first of them. Nothing is loaded then.
    """
    wanted = {name: p.shape for name, p in trainable_parameters(model).items()}
    if new_part is not None and not any(name.startswith(f"{new_part}.") for name in state):
        wanted = {name: shape for name, shape in wanted.items() if not name.startswith(f"{new_part}.")}
    problems = mismatches(wanted, state)
    if problems:
        raise WeightsError(f"{source} does not fit this model: {problems}. {_WAY_OUT}")
    require_finite(state, source)
    model.load_state_dict(dict(state), strict=False)


def load_weights(model: nn.Module, path: str | Path, new_part: str | None = None) -> None:
    """Set every trainable parameter of a network from a checkpoint of either format.

    Args:
        model: an :class:`~odise_pl.models.odise.Odise`.
        path: of the checkpoint; its content decides the format.
        new_part: see :func:`load_trainable_state`.

    Raises:
        WeightsError: the file is missing, damaged, of neither format, or does not fit, as in
            :func:`load_trainable_state`.
    """
    checkpoint = read_any_checkpoint(path)
    to_state = _imported_state if is_official(checkpoint, str(path)) else _own_state
    load_trainable_state(model, to_state(checkpoint), str(path), new_part)


def is_official(checkpoint: Mapping[str, Any], source: str) -> bool:
    """Whether a checkpoint has the official release's format, not this project's.

    Raises:
        WeightsError: it has neither; the message lists what it holds.
    """
    state, official = checkpoint.get("state_dict"), checkpoint.get("model")
    if isinstance(state, Mapping) and any(name.startswith(_OWN) for name in state):
        return False
    if isinstance(official, Mapping) and any(to_ours(name) for name in official):
        return True
    names = next((x for x in (state, official, checkpoint) if isinstance(x, Mapping)), {})
    shown = ", ".join(map(str, list(names)[:4])) or "nothing"
    raise WeightsError(
        f"{source} is neither a checkpoint of this project nor of the official release: it holds {shown}"
    )


def _own_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()}


def _imported_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of an official checkpoint under our names; unknown ones keep theirs."""
    return {to_ours(n) or n: value for n, value in checkpoint["model"].items() if n not in UNUSED}


def export_official(source: str | Path, target: str | Path) -> None:
    """Convert a checkpoint of this project to the official format: ``{"model", "iteration"}``.

    Raises:
        WeightsError: ``source`` is not of this project, the release has no such network, or ``target`` exists
            or cannot be written.
    """
    if Path(target).exists():
        raise WeightsError(f"{target} already exists; name a new file")
    checkpoint = read_any_checkpoint(source)
    if is_official(checkpoint, str(source)):
        raise WeightsError(f"{source} already has the official format; copy it")
    state = _own_state(checkpoint)
    require_finite(state, str(source))
    preset = preset_of(state)
    if "odise" not in preset:
        raise WeightsError(f"{source} is not of ODISE: only its networks can have the official format")
    supervision = preset.rpartition("_")[2]
    names = {name: to_official(name, supervision) for name in state}
    if unknown := [name for name, official in names.items() if official is None]:
        raise WeightsError(f"the official release lacks {list_first('of the weights', unknown)}")
    weights = {str(names[name]): value for name, value in state.items()}
    weights |= _class_weights(checkpoint, supervision)
    # the release counts iterations from 0 and saves the number of the last one
    iteration = max(int(checkpoint.get("global_step", 0)) - 1, 0)
    try:
        with atomic_write(Path(target)) as file:
            torch.save({"model": weights, "iteration": iteration}, file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
        raise WeightsError(f"cannot write {target}: {error}") from error


def _class_weights(checkpoint: Mapping[str, Any], supervision: str) -> dict[str, Tensor]:
    """The loss's class weights in official files, from the number of classes."""
    vocabulary = (checkpoint.get("odise") or {}).get("vocabulary", {})
    classes = 1 if supervision == "caption" else len(vocabulary.get("categories", ()))
    return {UNUSED[0]: torch.tensor([1.0] * classes + [NO_OBJECT_WEIGHT])} if classes else {}
