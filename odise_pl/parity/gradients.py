"""Finding the kinks that decide otherwise in a record, where gradients differ by more than they may.

In the block that is off, decisions are turned one by one, those first that explain what is missing in the
gradient of a bias: it is the sum over the cells that count.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from odise_pl.ops.deformable_attention import DeformableAttention
from odise_pl.parity.checks import GRADIENT
from odise_pl.parity.kinks import RELU, KinkWatch, Place, Seen

TRIALS = 32  # per block
ENOUGH = GRADIENT / 4  # a block whose gradients are nearer than this is left alone
BETTER = 0.99  # a turned decision has to shrink the squared distance to the record to this share of it


def find_turns(
    model: nn.Module, seen: Seen, recorded: Mapping[str, Tensor], blocks: set[str]
) -> frozenset[Place]:
    """Decisions that have to be turned for the gradients of some blocks to come near the recorded ones.

    Args:
        model: the network.
        seen: what a forward and backward pass noted.
        recorded: gradients by our parameter names.
        blocks: where gradients are off.
    """
    turned: frozenset[Place] = frozenset()
    for block in sorted(blocks & seen.calls.keys()):
        turned |= _search(model, block, seen, recorded)
    return turned


def _search(model: nn.Module, block: str, seen: Seen, recorded: Mapping[str, Tensor]) -> frozenset[Place]:
    turned: frozenset[Place] = frozenset()
    best, worst = _distance(model, block, seen, recorded, turned)
    for place in _candidates(model, block, seen, recorded):
        if worst <= ENOUGH:
            break
        trial = turned | {place}
        distance, off = _distance(model, block, seen, recorded, trial)
        if distance < BETTER * best:
            turned, best, worst = trial, distance, off
    return turned


def _distance(
    model: nn.Module, block: str, seen: Seen, recorded: Mapping[str, Tensor], turned: frozenset[Place]
) -> tuple[float, float]:
    """How far the block's gradients are from the record: sum of squares and worst, over the largest value."""
    module = model.get_submodule(block)
    weights = {n: p for n, p in module.named_parameters() if p.requires_grad and f"{block}.{n}" in recorded}
    with KinkWatch(module, turned, block):
        outputs = [module(*call.arguments) for call in seen.calls[block]]
    back = [call.gradient for call in seen.calls[block]]
    pairs = [
        (output, gradient) for output, gradient in zip(outputs, back, strict=True) if gradient is not None
    ]
    gradients = torch.autograd.grad(
        [output for output, _ in pairs], list(weights.values()), [gradient for _, gradient in pairs]
    )
    errors = []
    for name, gradient in zip(weights, gradients, strict=True):
        wanted = recorded[f"{block}.{name}"]
        errors.append((gradient - wanted) / _largest(wanted))
    total = sum(float(error.square().sum()) for error in errors)
    return total, max((float(error.abs().max()) for error in errors), default=0.0)


def _largest(x: Tensor) -> Tensor:
    return x.abs().max().clamp(min=1e-30)


def _candidates(model: nn.Module, block: str, seen: Seen, recorded: Mapping[str, Tensor]) -> list[Place]:
    """Close decisions that may bring the gradient of a bias nearer to the record, the best first."""
    module = model.get_submodule(block)
    missing = {}
    for name, parameter in module.named_parameters():
        wanted = recorded.get(f"{block}.{name}")
        if wanted is not None and wanted.dim() == 1 and parameter.grad is not None:
            missing[name] = ((wanted - parameter.grad) / _largest(wanted), float(_largest(wanted)))
    gains = {
        place: _relu_gain(place, seen, missing)
        if place.operation == RELU
        else _sample_gain(place, module, missing)
        for place in seen.close
        if place.block == block
    }
    useful = [place for place, gain in gains.items() if gain > 0]
    return sorted(useful, key=lambda place: gains[place], reverse=True)[:TRIALS]


def _relu_gain(place: Place, seen: Seen, missing: Mapping[str, tuple[Tensor, float]]) -> float:
    """How much nearer a bias comes, of those that have one entry per channel of the ReLU."""
    gradient = seen.gradients.get((place.block, place.number))
    if gradient is None:
        return 0.0
    axis = 1 if gradient.dim() == 4 else -1
    channel, count = place.index[axis], gradient.shape[axis]
    change = float(gradient[place.index]) * (-1 if seen.close[place] else 1)
    gains = [0.0]
    for error, largest in missing.values():
        if len(error) == count:
            before = float(error[channel])
            gains.append(abs(before) - abs(before - change / largest))
    return max(gains)


def _sample_gain(place: Place, module: nn.Module, missing: Mapping[str, tuple[Tensor, float]]) -> float:
    """How much is missing in the bias of the offset that this place comes from."""
    if not isinstance(module, DeformableAttention) or "sampling_offsets.bias" not in missing:
        return 0.0
    error, _ = missing["sampling_offsets.bias"]
    row, _, point, axis = place.index
    head, level = row % module.heads, place.number % module.levels
    return abs(float(error.view(module.heads, module.levels, module.points, 2)[head, level, point, axis]))
