"""Reading tensor files without running pickled code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from odise_pl.errors import UserError


class WeightsError(UserError, RuntimeError):
    """A weights file is missing, damaged or does not fit the model."""


class _Inert:
    """Replaces every pickled class that is not a tensor; it accepts any argument and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self

    def __hash__(self) -> int:
        return id(self)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a ``.safetensors`` file or a ``torch.save`` archive (``.ckpt``, ``.pth``, ``.bin``).

    Objects other than tensors and plain containers (training checkpoints of Stable Diffusion contain
    callbacks) become inert placeholders, so no pickled code runs.

    Raises:
        WeightsError: the file is missing, damaged or of another kind; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights file not found: {path}")
    is_archive = zipfile.is_zipfile(path)
    try:
        return dict(load_file(path)) if path.suffix == ".safetensors" else _read_archive(path, is_archive)
    except Exception as error:  # readers of damaged files raise errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # whose text recommends to run pickled code
            reason = "loading it would run code" if is_archive else "not written by torch.save"
        raise WeightsError(
            f"{path} is damaged or not a weights file ({reason}); use another copy or checkpoint, or save "
            "its tensors as .safetensors"
        ) from error


def _read_archive(path: Path, mapped: bool) -> dict[str, Any]:
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if mapped else []
    stand_ins: list[Any] = [(_Inert, name) for name in unsafe]
    with torch.serialization.safe_globals(stand_ins):
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(data, dict):
        raise ValueError(f"it contains a {type(data).__name__}, not a dictionary of tensors")
    return data


def tensors_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: under ``state_dict``, under ``model``, or at the top level."""
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def require_finite(tensors: Mapping[str, Any], source: str) -> None:
    """Raise WeightsError if a tensor is not dense or not finite in float32.

    Reads each tensor once without a copy, so mapped files stay mapped; 1.5 s for 10^9 values on one core.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise WeightsError(
                f"{source}: {name} is sparse, quantised, complex or on the meta device; save dense tensors"
            )
        if value.is_floating_point() and value.numel():
            comparable = value if value.element_size() > 1 else value.float()
            if not all(bound.float().isfinite() for bound in torch.aminmax(comparable.detach())):
                raise WeightsError(
                    f"{source}: {name} holds NaN or infinity in float32; download the file again"
                )


def load_exactly(
    module: nn.Module,
    tensors: dict[str, Tensor],
    source: str,
    ignore: tuple[str, ...] = (),
    assign: bool = False,
) -> None:
    """Load ``tensors`` into ``module``: no name missing or unexpected, all shapes equal.

    Args:
        module: its dtype stays; it may be on the meta device if ``assign``.
        tensors: by the module's own names.
        source: named in errors.
        ignore: names that may be missing or unexpected (buffers of other library versions).
        assign: use the tensors themselves, not copies.

    Raises:
        WeightsError: names or shapes do not fit, see :func:`mismatches`.
    """
    wanted = module.state_dict()
    own = {name: value.shape for name, value in wanted.items() if name not in ignore}
    problems = mismatches(own, {name: value for name, value in tensors.items() if name not in ignore})
    if problems:
        raise WeightsError(f"{source} does not fit {type(module).__name__}: {problems}")
    fitting = {name: tensor for name, tensor in tensors.items() if name in wanted}
    module.load_state_dict(fitting, strict=not ignore, assign=assign)


def mismatches(wanted: Mapping[str, torch.Size], tensors: Mapping[str, Any]) -> str:
    """The first names that are missing, unexpected or of another shape, as text; empty if all fit."""
    found = {name: tuple(getattr(value, "shape", ("no tensor",))) for name, value in tensors.items()}
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name}: {found[name]} in the file, {tuple(shape)} in the model"
            for name, shape in wanted.items()
            if name in found and found[name] != tuple(shape)
        ],
    }
    return "; ".join(list_first(kind, names) for kind, names in problems.items() if names)


def list_first(kind: str, names: Sequence[str], limit: int = 4) -> str:
    """``9 missing (a, b, c, d, ...)``."""
    return f"{len(names)} {kind} ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})"
