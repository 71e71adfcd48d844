"""Autocast on a processor by the rules for GPUs, so that tensors have the precision they would have there.

Processors leave normalisations, softmax and others in bfloat16, GPUs run them in float32 (PyTorch's
documentation of automatic mixed precision, "CUDA Ops that can autocast to float32").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor

# What a GPU runs in float32, of what a network is made of; all overloads.
IN_FLOAT32 = (
    *("layer_norm", "group_norm", "softmax", "log_softmax", "sum", "prod", "cumsum", "cumprod"),
    *("exp", "log", "log1p", "log2", "log10", "pow", "rsqrt", "reciprocal", "softplus", "expm1"),
    *("linalg_vector_norm", "norm", "logsumexp", "cosine_similarity", "cdist"),
    *("nll_loss", "nll_loss2d", "l1_loss", "smooth_l1_loss", "mse_loss", "kl_div", "huber_loss"),
    *("binary_cross_entropy_with_logits", "soft_margin_loss"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"),
)
# What a GPU runs in the widest of its inputs' precisions, and a processor in float32.
IN_WIDEST = ("grid_sampler",)
_LOW = (torch.bfloat16, torch.float16)
_KEY = "AutocastCPU"
Cast = Callable[[Sequence[Any]], list[Any]]  # of an operation's arguments


@contextmanager
def gpu_autocast() -> Iterator[None]:
    """Inside, ``torch.autocast("cpu")`` rounds what ``torch.autocast("cuda")`` rounds."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for names, cast in ((IN_FLOAT32, _to_float32), (IN_WIDEST, _to_widest)):
            for packet in (getattr(torch.ops.aten, name) for name in names):
                for overload in packet.overloads():
                    _register(library, getattr(packet, overload), cast)
        yield
    finally:
        library._destroy()


def _register(library: torch.library.Library, operation: Any, cast: Cast) -> None:
    if any(argument.is_out for argument in operation._schema.arguments):
        return
    library.impl(operation, _after(cast, operation), _KEY, allow_override=True)


def _after(cast: Cast, operation: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        # the casts are a part of the graph, and the operation is not cast again
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return operation(*cast(args), **kwargs)

    return kernel


def _to_float32(arguments: Sequence[Any]) -> list[Any]:
    return [a.float() if isinstance(a, Tensor) and a.dtype in _LOW else a for a in arguments]


def _to_widest(arguments: Sequence[Any]) -> list[Any]:
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    widest = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    return [a.to(widest) if isinstance(a, Tensor) else a for a in arguments]
