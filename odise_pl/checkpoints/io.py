"""Trainable weights in checkpoints of two formats, this project's (Lightning) and the official release's.

Checkpoints have no frozen weights. Trainable weights are loaded completely or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from odise_pl.checkpoints.official_names import UNUSED, supervision_of, to_official, to_ours
from odise_pl.files import atomic_write
from odise_pl.models.weights import WeightsError, list_first, mismatches, read_checkpoint, require_finite

Format = Literal["ours", "official"]
PREFIX = "model."  # of the network's weights in a Lightning checkpoint
NO_OBJECT_WEIGHT = 0.1
_WAY_OUT = (
    "use the settings it was trained with (model=odise_label or odise_caption, backbone, captioner, "
    "backbone.timesteps), or download the file again if it is incomplete"
)


def trainable_names(model: nn.Module) -> set[str]:
    """Names of the trainable parameters."""
    return set(_trainable(model))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict's trainable parameters."""
    names = trainable_names(model)
    return {name: value for name, value in model.state_dict().items() if name in names}


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Set every trainable parameter.

    Raises:
        WeightsError: names or shapes do not fit, or a value is not finite; the message names ``source`` and
            the first of them. Nothing is loaded then.
    """
    _require_fit({name: parameter.shape for name, parameter in _trainable(model).items()}, state, source)
    model.load_state_dict(dict(state), strict=False)


def load_weights(model: nn.Module, path: str | Path) -> Format:
    """Set every trainable parameter of a network from a checkpoint of either format.

    Args:
        model: an :class:`~odise_pl.models.odise.Odise`.
        path: of the checkpoint; its content decides the format.

    Returns:
        the format of the file.

    Raises:
        WeightsError: the file is missing, damaged, of neither format, or does not fit the model; the message
            names the first weights that do not fit. Nothing is loaded then.
    """
    checkpoint = read_checkpoint(path)
    kind = recognise(checkpoint, str(path))
    if kind == "ours":
        load_trainable_state(model, _own_state(checkpoint), str(path))
        return kind
    names = {official: name for name, official in _official(_trainable(model)).items()}
    state = _used(checkpoint["model"])
    _require_fit(official_shapes(model), state, str(path))
    model.load_state_dict({names[official]: value for official, value in state.items()}, strict=False)
    return kind


def recognise(checkpoint: Mapping[str, Any], source: str) -> Format:
    """The format of a checkpoint.

    Raises:
        WeightsError: it has neither; the message lists what it holds.
    """
    state, official = checkpoint.get("state_dict"), checkpoint.get("model")
    if isinstance(state, Mapping) and any(name.startswith(PREFIX + "pixel_decoder.") for name in state):
        return "ours"
    if isinstance(official, Mapping) and any(to_ours(name) for name in official):
        return "official"
    names = next((x for x in (state, official, checkpoint) if isinstance(x, Mapping)), {})
    shown = ", ".join(map(str, list(names)[:4])) or "nothing"
    raise WeightsError(
        f"{source} is neither a checkpoint of this project nor of the official release: it holds {shown}"
    )


def official_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Official name and shape of every trainable parameter.

    Raises:
        WeightsError: the release has no name for a parameter.
    """
    own = _trainable(model)
    names = _official(own)
    return {names[name]: parameter.shape for name, parameter in own.items()}


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in parameters if parameter.requires_grad}


def _official(names: Mapping[str, Any]) -> dict[str, str]:
    supervision = supervision_of(names)
    translated = {name: to_official(name, supervision) for name in names}
    unknown = [name for name, official in translated.items() if official is None]
    if unknown:
        raise WeightsError(f"the official release lacks {list_first('of the weights', unknown)}")
    return {name: official for name, official in translated.items() if official is not None}


def _own_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()}


def _used(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in UNUSED}


def _require_fit(wanted: Mapping[str, torch.Size], state: Mapping[str, Any], source: str) -> None:
    problems = mismatches(wanted, state)
    if problems:
        raise WeightsError(f"{source} does not fit this model: {problems}. {_WAY_OUT}")
    require_finite(state, source)


def export_official(source: str | Path, target: str | Path) -> None:
    """Convert a checkpoint of this project to the official format: ``{"model", "iteration"}``.

    Raises:
        WeightsError: ``source`` is not of this project, or the release has no such network.
    """
    checkpoint = read_checkpoint(source)
    if recognise(checkpoint, str(source)) != "ours":
        raise WeightsError(f"{source} already has the official format; copy it")
    state = _own_state(checkpoint)
    require_finite(state, str(source))
    names = _official(state)
    official = {names[name]: value for name, value in state.items()} | _class_weights(checkpoint, state)
    # the release counts iterations from 0 and saves the number of the last one
    iteration = max(int(checkpoint.get("global_step", 0)) - 1, 0)
    _save({"model": official, "iteration": iteration}, target)


def import_official(source: str | Path, target: str | Path) -> None:
    """Convert an official checkpoint to this project's format, weights and step only.

    Raises:
        WeightsError: ``source`` is not official, or has unknown names.
    """
    checkpoint = read_checkpoint(source)
    if recognise(checkpoint, str(source)) != "official":
        raise WeightsError(f"{source} already has this project's format; copy it")
    state = _used(checkpoint["model"])
    named = {name: to_ours(name) for name in state}
    unknown = [name for name, ours in named.items() if ours is None]
    if unknown:
        raise WeightsError(f"{source}: {list_first('unknown', unknown)}")
    require_finite(state, str(source))
    imported = {
        "state_dict": {f"{PREFIX}{named[name]}": value for name, value in state.items()},
        "global_step": int(checkpoint.get("iteration", -1)) + 1,
        "epoch": 0,
        "pytorch-lightning_version": version("lightning"),
        "official": {name: value for name, value in checkpoint["model"].items() if name in UNUSED},
    }
    _save(imported, target)


def _class_weights(checkpoint: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The loss's class weights in official files: as imported, else from the number of classes."""
    if isinstance(checkpoint.get("official"), Mapping):
        return dict(checkpoint["official"])
    vocabulary = (checkpoint.get("odise") or {}).get("vocabulary", {})
    classes = 1 if supervision_of(state) == "caption" else len(vocabulary.get("categories", ()))
    return {UNUSED[0]: torch.tensor([1.0] * classes + [NO_OBJECT_WEIGHT])} if classes else {}


def _save(checkpoint: dict[str, Any], target: str | Path) -> None:
    try:
        with atomic_write(Path(target)) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
        raise WeightsError(f"cannot write {target}: {error}") from error
