"""Reading tensor files without executing what was pickled into them."""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from odise_pl.errors import UserError

_TENSORS_OF_CLIP = (
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
        WeightsError: the file is missing, truncated or of another kind; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights file not found: {path}")
    try:
        _refuse_program(path)
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return _read_archive(path)
    except WeightsError:
        raise
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path} is damaged or not a weights file ({first}); fetch it again, or take an earlier one"
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # an archive so short that its directory would lie before its start
            raise WeightsError(
                f"{path} is damaged or not a weights file; fetch it again, or take an earlier one"
            ) from error
        raise WeightsError(f"cannot read {path}: {error}") from error
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise WeightsError(
                f"{path} holds objects that cannot be read without running their code; "
                "store its tensors alone, as .safetensors"
            ) from error
        raise WeightsError(f"{path} is not a weights file; fetch it again") from error
    except Exception as error:  # the many ways of not being a pickle
        raise WeightsError(f"{path} is not a weights file ({type(error).__name__})") from error


def _refuse_program(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) != b"PK" or not zipfile.is_zipfile(path):
            return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise WeightsError(
                f"{path} is a TorchScript archive: a program, which is not run; store its tensors alone, as "
                ".safetensors. If it is CLIP ViT-L/14 at 336 pixels as OpenAI publishes it, get them with: "
                f"{_TENSORS_OF_CLIP}\n    and set clip.weights=weights/open_clip_model.safetensors"
            )


def _read_archive(path: Path) -> dict[str, Any]:
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    stand_ins: list[Any] = [(_Inert, name) for name in unsafe]
    with torch.serialization.safe_globals(stand_ins):
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
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
    """Raise WeightsError at the first tensor that cannot be a weight: with NaN, infinity or numbers beyond
    float32, or not of plain numbers.

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
            wide = value if value.element_size() > 1 else value.float()
            if not all(bound.float().isfinite() for bound in torch.aminmax(wide.detach())):
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
    own = module.state_dict()
    wrong = [f"{n}: {tuple(t.shape)} in the file, {tuple(own[n].shape)} in the model"
             for n, t in tensors.items() if n in own and own[n].shape != t.shape]  # fmt: skip
    missing = sorted(own.keys() - tensors.keys() - set(ignore))
    unexpected = sorted(tensors.keys() - own.keys() - set(ignore))
    if wrong or missing or unexpected:
        raise WeightsError(
            f"{source} does not fit {type(module).__name__}: "
            + "; ".join(_first(kind, names) for kind, names in
                        (("missing", missing), ("unexpected", unexpected), ("shape", wrong)) if names)
        )  # fmt: skip
    module.load_state_dict({n: t for n, t in tensors.items() if n in own}, strict=not ignore, assign=assign)


def _first(kind: str, names: list[str], limit: int = 4) -> str:
    return f"{len(names)} {kind} ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})"
