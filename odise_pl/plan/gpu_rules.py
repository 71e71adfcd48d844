"""Autocast on a processor by the rules for GPUs, so that tensors have the precision they would have there.

Processors leave normalisations, softmax and others in bfloat16, GPUs run them in float32 (PyTorch's
documentation of automatic mixed precision, "CUDA Ops that can autocast to float32").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# What a GPU runs in float32, of what a network is made of; all overloads.
IN_FLOAT32 = (
    *("layer_norm", "group_norm", "softmax", "log_softmax", "sum", "prod", "cumsum", "cumprod"),
    *("exp", "log", "log1p", "log2", "log10", "pow", "rsqrt", "reciprocal", "softplus", "expm1"),
    *("linalg_vector_norm", "norm", "logsumexp", "cosine_similarity", "cdist"),
    *("nll_loss", "nll_loss2d", "l1_loss", "smooth_l1_loss", "mse_loss", "kl_div", "huber_loss"),
    *("binary_cross_entropy_with_logits", "soft_margin_loss"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"),
)
_LOW = (torch.bfloat16, torch.float16)
_KEY = "AutocastCPU"


@contextmanager
def gpu_autocast() -> Iterator[None]:
    """Inside, ``torch.autocast("cpu")`` rounds what ``torch.autocast("cuda")`` rounds."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for name in IN_FLOAT32:
            packet = getattr(torch.ops.aten, name)
            for overload in packet.overloads():
                _widen(library, getattr(packet, overload))
        yield
    finally:
        library._destroy()


def _widen(library: torch.library.Library, operation: Any) -> None:
    if any(argument.is_out for argument in operation._schema.arguments):
        return
    library.impl(operation, _in_float32(operation), _KEY, allow_override=True)


def _in_float32(operation: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        # the casts are a part of the graph, and the operation is not cast again
        with torch.autocast("cpu", enabled=False):
            wide_args, wide_kwargs = tree_map_only(Tensor, _wide, (args, kwargs))
            return operation(*wide_args, **wide_kwargs)

    return kernel


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _LOW else tensor
