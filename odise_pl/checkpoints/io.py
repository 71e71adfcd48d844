"""Checkpoints: frozen weights stay out, trainable weights come in complete or not at all, whoever wrote them.

Two formats are read and converted into each other: this project's (Lightning) and the official release's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from odise_pl.checkpoints.official_names import UNUSED, supervision_of, to_official, to_ours
from odise_pl.files import atomic_write
from odise_pl.models.weights import WeightsError, read_checkpoint, require_finite

Format = Literal["ours", "official"]
PREFIX = "model."  # of the network's weights in a Lightning checkpoint
NO_OBJECT_WEIGHT = 0.1
_WAY_OUT = (
    "use the settings it was trained with (model=odise_label or odise_caption, backbone, captioner, "
    "backbone.timesteps), or fetch the file again if it was cut off"
)


def trainable_names(model: nn.Module) -> set[str]:
    """Names of the parameters that train; frozen weights and constants are not among them."""
    return set(_trainable(model))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The part of the state dict that training changes."""
    names = trainable_names(model)
    return {name: value for name, value in model.state_dict().items() if name in names}


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill every trainable parameter.

    Raises:
        WeightsError: a parameter is missing, left over or of another shape; the message names ``source``
            and the first of them. Nothing is loaded then.
    """
    _check({name: parameter.shape for name, parameter in _trainable(model).items()}, state, source)
    model.load_state_dict(dict(state), strict=False)


def load_weights(model: nn.Module, path: str | Path) -> Format:
    """Fill every trainable parameter of a network from a checkpoint of this project or of the release.

    Args:
        model: an :class:`~odise_pl.models.odise.Odise`.
        path: the format is recognised by what the file holds.

    Returns:
        which format it was.

    Raises:
        WeightsError: no such file, damaged, neither format, or it does not fit the model; the message
            names the first weights that do not. Nothing is loaded then.
    """
    checkpoint = read_checkpoint(path)
    kind = recognise(checkpoint, str(path))
    if kind == "ours":
        load_trainable_state(model, _own_state(checkpoint), str(path))
        return kind
    names = {official: name for name, official in _official(_trainable(model)).items()}
    state = _used(checkpoint["model"])
    _check(official_shapes(model), state, str(path))
    model.load_state_dict({names[official]: value for official, value in state.items()}, strict=False)
    return kind


def recognise(checkpoint: Mapping[str, Any], source: str) -> Format:
    """Whose format a checkpoint has.

    Raises:
        WeightsError: it has neither; the message shows what it holds.
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
        WeightsError: the release has no name for one, so the model is of a kind it does not know.
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
        raise WeightsError(f"the official release has no {_first('name for', unknown)}")
    return {name: official for name, official in translated.items() if official is not None}


def _own_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()}


def _used(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in UNUSED}


def _check(wanted: Mapping[str, torch.Size], state: Mapping[str, Any], source: str) -> None:
    got = {name: tuple(getattr(value, "shape", ("no tensor",))) for name, value in state.items()}
    problems = {
        "missing": sorted(wanted.keys() - got.keys()),
        "unexpected": sorted(got.keys() - wanted.keys()),
        "of another shape": [
            f"{name}: {got[name]} in the file, {tuple(shape)} in the model"
            for name, shape in wanted.items()
            if name in got and got[name] != tuple(shape)
        ],
    }
    listed = [_first(kind, names) for kind, names in problems.items() if names]
    if listed:
        raise WeightsError(f"{source} does not fit this model: {'; '.join(listed)}. {_WAY_OUT}")
    require_finite(state, source)


def _first(kind: str, names: Sequence[str], limit: int = 4) -> str:
    return f"{len(names)} {kind} ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})"


# Conversion


def export_official(source: str | Path, target: str | Path) -> None:
    """Write a checkpoint of this project in the official format: ``{"model", "iteration"}``.

    Raises:
        WeightsError: ``source`` is not ours, or the release has no such network.
    """
    checkpoint = read_checkpoint(source)
    if recognise(checkpoint, str(source)) != "ours":
        raise WeightsError(f"{source} has the official format already; copy it")
    state = _own_state(checkpoint)
    require_finite(state, str(source))
    names = _official(state)
    official = {names[name]: value for name, value in state.items()} | _class_weights(checkpoint, state)
    # the release counts iterations from 0 and keeps the last one that is done
    iteration = max(int(checkpoint.get("global_step", 0)) - 1, 0)
    _save({"model": official, "iteration": iteration}, target)


def import_official(source: str | Path, target: str | Path) -> None:
    """Write an official checkpoint in this project's format, weights and step only.

    Shapes are checked when it is loaded into a network.

    Raises:
        WeightsError: ``source`` is not official, or holds names the release does not use.
    """
    checkpoint = read_checkpoint(source)
    if recognise(checkpoint, str(source)) != "official":
        raise WeightsError(f"{source} is a checkpoint of this project already; copy it")
    state = _used(checkpoint["model"])
    named = {name: to_ours(name) for name in state}
    unknown = [name for name, ours in named.items() if ours is None]
    if unknown:
        raise WeightsError(f"{source}: {_first('unknown', unknown)}")
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
    """The loss's class weights, which official files carry: as imported, else by the number of classes."""
    if isinstance(checkpoint.get("official"), Mapping):
        return dict(checkpoint["official"])
    description = checkpoint.get("odise") or {}
    classes = 1 if supervision_of(state) == "caption" else _classes(description)
    return {UNUSED[0]: torch.tensor([1.0] * classes + [NO_OBJECT_WEIGHT])} if classes else {}


def _classes(description: Mapping[str, Any]) -> int:
    return len(description.get("vocabulary", {}).get("categories", ()))


def _save(checkpoint: dict[str, Any], target: str | Path) -> None:
    try:
        with atomic_write(Path(target)) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        raise WeightsError(f"cannot write {target}: {error}") from error
