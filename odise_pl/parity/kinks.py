"""Activations within rounding of a kink, where the gradient may be one thing or another.

A ReLU of a value of a few millionths on either side of zero is nothing in the forward pass, but it decides
whether the gradient of its cell counts; so does, for the gradient of a place, on which side of a pixel's
centre a map is sampled. In a small map one cell is a visible share of a weight's gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

CLOSE = 2e-5  # of the largest activation: about twice what different convolution libraries move it by
CLOSE_PIXELS = 1e-4

RELU, SAMPLE = "relu", "sample"


@dataclass(frozen=True)
class Place:
    """One decision: the index of a value in call ``number`` of an operation inside a block."""

    block: str
    operation: str
    number: int
    index: tuple[int, ...]


@dataclass
class BlockCall:
    """One pass through a block: its arguments, and the gradient that came back."""

    arguments: tuple[Any, ...]
    gradient: Tensor | None = None


@dataclass
class Seen:
    """What a pass through the model noted.

    Attributes:
        close: decisions that are close, with their derivative's sign: True where a ReLU lets pass.
        decisions: number of all.
        gradients: of the output of each ReLU, by block and number, after the backward pass.
        calls: passes through each block with a kink.
    """

    close: dict[Place, bool] = field(default_factory=dict)
    decisions: int = 0
    gradients: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    calls: dict[str, list[BlockCall]] = field(default_factory=lambda: defaultdict(list))


class KinkWatch(TorchFunctionMode):
    """While it is entered, notes the close decisions of a model's trainable blocks, and turns some of them.

    Args:
        model: what is watched.
        turned: decisions that are turned.
        name: of ``model`` in the network it is a part of.
    """

    def __init__(self, model: nn.Module, turned: frozenset[Place] = frozenset(), name: str = "") -> None:
        super().__init__()
        self.model, self.name, self.seen = model, name, Seen()
        self._turned: dict[tuple[str, str, int], list[tuple[int, ...]]] = defaultdict(list)
        for place in turned:
            self._turned[place.block, place.operation, place.number].append(place.index)
        self._stack: list[str] = []
        self._count: dict[tuple[str, str], int] = defaultdict(int)
        self._hooks: list[Any] = []

    def __enter__(self) -> KinkWatch:
        for name, module in self.model.named_modules():
            if any(p.requires_grad for p in module.parameters()):
                full = f"{self.name}.{name}".strip(".")
                self._hooks.append(module.register_forward_pre_hook(self._enter(full)))
                self._hooks.append(module.register_forward_hook(self._leave))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._stack.append(name)

        return hook

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        name = self._stack.pop()
        if not isinstance(output, Tensor) or not ({(name, RELU), (name, SAMPLE)} & self._count.keys()):
            return
        call = BlockCall(arguments)
        self.seen.calls[name].append(call)
        if output.requires_grad:
            output.register_hook(lambda gradient: setattr(call, "gradient", gradient))

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if self._stack and function in (F.relu, torch.relu):
            return self._relu(arguments[0])
        if self._stack and function is F.grid_sample:
            maps, grid, *rest = arguments
            return function(maps, self._moved(maps, grid), *rest, **options)
        return function(*arguments, **options)

    def _next(self, operation: str) -> tuple[str, int]:
        block = self._stack[-1]
        self._count[block, operation] += 1
        return block, self._count[block, operation] - 1

    def _note(self, operation: str, block: str, number: int, close: Tensor, sign: Tensor) -> None:
        self.seen.decisions += close.numel()
        for cell in close.nonzero().tolist():
            index = tuple(cell)
            self.seen.close[Place(block, operation, number, index)] = bool(sign[index])

    def _relu(self, x: Tensor) -> Tensor:
        block, number = self._next(RELU)
        passes, size = x > 0, x.detach().abs()
        self._note(RELU, block, number, size < CLOSE * size.max(), passes)
        for index in self._turned[block, RELU, number]:
            passes[index] = ~passes[index]
        output = x * passes
        if output.requires_grad:
            output.register_hook(lambda gradient: self.seen.gradients.update({(block, number): gradient}))
        return output

    def _moved(self, maps: Tensor, grid: Tensor) -> Tensor:
        """The grid with turned places on the other side of the pixel's centre they are close to."""
        if not grid.requires_grad:
            return grid
        block, number = self._next(SAMPLE)
        size = torch.tensor(maps.shape[:-3:-1], dtype=grid.dtype)  # width, height
        pixels = ((grid.detach() + 1) * size - 1) / 2
        beyond = pixels - pixels.round()
        self._note(SAMPLE, block, number, beyond.abs() < CLOSE_PIXELS, beyond > 0)
        shift = torch.zeros_like(grid)
        for index in self._turned[block, SAMPLE, number]:
            # twice the distance, and a little more for a place exactly in the centre
            shift[index] = -(2 * beyond[index] + beyond[index].sign() * 1e-6) * 2 / size[index[-1]]
        return grid + shift
