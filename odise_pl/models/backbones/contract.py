"""The contract between a frozen network and the backbone around it.

A backbone cuts windows, asks a captioner for the conditioning, runs :class:`Features` and projects their taps
to a pyramid. It does not know which network the features are of. ``docs/backbones.md`` has the contract on
one page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from odise_pl.errors import SettingError
from odise_pl.models.frozen import Frozen
from odise_pl.structures import TensorStruct


@dataclass(frozen=True)
class Tap:
    """A feature map of a frozen network.

    Attributes:
        name: of the map.
        channels: its width.
        stride: pixels of the window, before it is resized for the network, per cell of the pyramid's level.
        pooled: where the map shrinks, average its cells; else take the nearest, as published.
    """

    name: str
    channels: int
    stride: int
    pooled: bool = False


@dataclass(frozen=True)
class Conditioning(TensorStruct):
    """Input of a diffusion model besides the image.

    Attributes:
        context: [N, tokens, context_dim].
        time: [N, steps, time_dim], added to the time embedding; None adds nothing.
    """

    context: Tensor
    time: Tensor | None = None


@dataclass(frozen=True)
class ConditioningSpec:
    """What a captioner needs to know of a network that takes a conditioning.

    Attributes:
        uncond: [1, tokens, context_dim], the context of the empty text.
        encode: maps N sentences to [N, tokens, context_dim]; None: the network reads no text.
        time_dim: width of the time embedding.
        steps: number of diffusion steps.
        learns_time: whether the backbone's settings ask for a learned time embedding.
    """

    uncond: Tensor
    encode: nn.Module | None
    time_dim: int
    steps: int
    learns_time: bool = False

    def time_width(self, learnable: bool) -> int | None:
        """Width of the time embedding if captioner or backbone want it learned, else None."""
        return self.time_dim if learnable or self.learns_time else None


class Features(Frozen, ABC):
    """Feature maps of a network; end the constructor with :meth:`freeze`.

    A network that is trained nevertheless stays in eval mode: statistics of batch norms keep their values,
    and nothing is dropped.

    Attributes:
        fixed_size: whether all inputs must be squares of the size that the network was built for; else sides
            are any multiples of :attr:`input_multiple`.
        is_clip: whether the maps are those of the shared CLIP.
    """

    fixed_size: bool = False
    is_clip: bool = False

    @property
    def trained(self) -> bool:
        """Whether any weight is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    @abstractmethod
    def taps(self) -> list[Tap]:
        """The maps of :meth:`forward` in order.

        The default pyramid needs strides that cover 4, 8, 16 and 32 (clamped).
        """

    @property
    @abstractmethod
    def input_multiple(self) -> int:
        """Sides of the input are multiples of it."""

    def check_size(self, side: int, setting: str) -> None:
        """Raise SettingError unless squares of this side fit; ``setting`` is where it comes from."""
        if side < self.input_multiple or side % self.input_multiple:
            nearest = max(1, round(side / self.input_multiple)) * self.input_multiple
            raise SettingError(
                f"{setting}={side} must be a multiple of {self.input_multiple}, such as {nearest}"
            )

    @abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """Parts that are called as a whole, none within another; sharding gathers one at a time."""

    @abstractmethod
    def forward(self, images: Tensor, conditioning: Conditioning | None = None) -> list[Tensor]:
        """Maps of all taps.

        Args:
            images: [N, 3, S, S] in 0..1, or [N, 3, H, W] unless :attr:`fixed_size`; the network's own
                normalisation is done here.
            conditioning: of a network that has a :class:`ConditioningSpec`; gradients flow to it. Others get
                None and run without gradients, unless they are trained.

        Returns:
            one map per tap, [N, tap.channels, h, w]; the pyramid resizes those whose side is not that of the
            window, before it was resized, by tap.stride.
        """
