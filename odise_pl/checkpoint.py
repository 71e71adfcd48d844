"""Checkpoints: frozen weights stay out, trainable weights come in complete or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from odise_pl.weights import WeightsError


def trainable_names(model: nn.Module) -> set[str]:
    """Names of the parameters that train; frozen weights and constants are not among them."""
    return {
        name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad
    }


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
    own = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    problems = [f"missing {name}" for name in own.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if state[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:4])
        raise WeightsError(
            f"{source} does not fit this model ({len(problems)} differences: {shown}); "
            "use the model and backbone settings it was trained with"
        )
    model.load_state_dict(dict(state), strict=False)
