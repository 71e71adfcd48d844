"""Reading tensor files without executing what was pickled into them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from odise_pl.errors import UserError

_CLIP_COMMAND = (
    "hf download timm/vit_large_patch14_clip_336.openai open_clip_model.safetensors --local-dir weights"
)


class WeightsError(UserError, RuntimeError):
    """A weights file is missing, damaged or does not fit the model."""


class _Inert:
    """Stands in for every pickled class that is not a tensor: it takes anything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self

    def __hash__(self) -> int:
        return id(self)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a ``.safetensors`` file or a ``torch.save`` archive (``.ckpt``, ``.pth``, ``.bin``).

    Classes that the archive names besides tensors and plain containers (training checkpoints of
    Stable Diffusion hold callback objects) become inert placeholders, so no pickled code runs.

    Raises:
        WeightsError: the file is missing, damaged or of another kind; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights file not found: {path}")
    is_archive = zipfile.is_zipfile(path)
    try:
        if is_archive:
            _refuse_program(path)
        return dict(load_file(path)) if path.suffix == ".safetensors" else _read_archive(path, is_archive)
    except WeightsError:
        raise
    except Exception as error:  # there are many ways of not being a weights file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError) and is_archive:
            reason = "it holds objects whose code would have to run; store its tensors alone, as .safetensors"
        raise WeightsError(
            f"{path} is damaged or not a weights file ({reason}); fetch it again, or take an earlier one"
        ) from error


def _refuse_program(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise WeightsError(
                f"{path} is a TorchScript archive: a program, which is not run; store its tensors alone, as "
                ".safetensors. If it is CLIP ViT-L/14 at 336 pixels as OpenAI publishes it, get them with: "
                f"{_CLIP_COMMAND}\n    and set clip.weights=weights/open_clip_model.safetensors"
            )


def _read_archive(path: Path, mapped: bool) -> dict[str, Any]:
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if mapped else []
    stand_ins: list[Any] = [(_Inert, name) for name in unsafe]
    with torch.serialization.safe_globals(stand_ins):
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(data, dict):
        raise ValueError(f"holds a {type(data).__name__}, not a dictionary of tensors")
    return data


def tensors_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, whether they stand under ``state_dict``, ``model`` or at the top."""
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def require_finite(tensors: Mapping[str, Any], source: str) -> None:
    """Raise WeightsError, which names ``source``, at a tensor that is not dense or not finite in float32.

    One pass that copies nothing: what lies in a mapped file stays there. 1.5 s for 10^9 numbers on one core.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise WeightsError(
                f"{source}: {name} is sparse, quantised, complex or without numbers; store plain tensors"
            )
        if value.is_floating_point() and value.numel():
            comparable = value if value.element_size() > 1 else value.float()
            if not all(bound.float().isfinite() for bound in torch.aminmax(comparable.detach())):
                raise WeightsError(
                    f"{source}: {name} holds NaN or infinity in float32; fetch it again, or take another"
                )


def load_exactly(
    module: nn.Module,
    tensors: dict[str, Tensor],
    source: str,
    ignore: tuple[str, ...] = (),
    assign: bool = False,
) -> None:
    """Load ``tensors`` into ``module``: every parameter filled, no tensor left over, shapes equal.

    Args:
        module: what is filled, in its own dtype; it may be on the meta device if ``assign``.
        tensors: by the module's own names.
        source: named in errors.
        ignore: names that may be left over (buffers of other library versions).
        assign: take the tensors themselves, not copies of them.

    Raises:
        WeightsError: lists the first names that are missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - tensors.keys() - set(ignore)),
        "unexpected": sorted(tensors.keys() - wanted.keys() - set(ignore)),
        "of another shape": [
            f"{name}: {tuple(tensor.shape)} in the file, {tuple(wanted[name].shape)} in the model"
            for name, tensor in tensors.items()
            if name in wanted and wanted[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        listed = (
            f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for kind, names in problems.items()
            if names
        )
        raise WeightsError(f"{source} does not fit {type(module).__name__}: {'; '.join(listed)}")
    fitting = {name: tensor for name, tensor in tensors.items() if name in wanted}
    module.load_state_dict(fitting, strict=not ignore, assign=assign)
