"""Two networks side by side: their features of a stride are summed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from odise_pl.errors import SettingError, UserError
from odise_pl.models.backbones.contract import Conditioning, ConditioningSpec, Features, Tap
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.pyramid import JointPyramid
from odise_pl.models.backbones.sliding_window import resize_square


@dataclass(frozen=True)
class Part:
    """One of the networks: its features, the side of its input, and whether it gets the conditioning."""

    features: Features
    size: int
    conditioned: bool


class JointFeatures(Features):
    """The maps of several networks, frozen or trained, each of the same windows at its own size."""

    input_multiple = 1  # each network has its own
    fixed_size = True

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(part.features for part in parts)
        self._parts = tuple(parts)
        self.eval()

    @property
    def taps(self) -> list[Tap]:
        """Those of the networks in order, as ``0.NAME``, ``1.NAME``."""
        return [
            replace(tap, name=f"{i}.{tap.name}")
            for i, part in enumerate(self._parts)
            for tap in part.features.taps
        ]

    def blocks(self) -> Iterator[nn.Module]:
        """Those of all."""
        for part in self._parts:
            yield from part.features.blocks()

    def forward(self, images: Tensor, conditioning: Conditioning | None = None) -> list[Tensor]:
        """Maps of all taps for images [N, 3, S, S] in 0..1."""
        maps: list[Tensor] = []
        for part in self._parts:
            own = images if images.shape[-1] == part.size else resize_square(images, part.size)
            learns = part.conditioned or part.features.trained
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                maps += part.features(own, conditioning if part.conditioned else None)
        return maps


@dataclass(frozen=True)
class JointSettings(FeatureSettings):
    """Settings of two networks side by side.

    Windows are resized to ``input_size``, from there to that of each network.

    Attributes:
        first, second: their settings; windows, their number per pass and the width are those of this class.
    """

    first: FeatureSettings
    second: FeatureSettings

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, own in (("first", self.first), ("second", self.second)):
            if not isinstance(own, FeatureSettings):
                raise SettingError(f"backbone.{name}: a {type(own).__name__} has no features; choose another")
        if self.channels is None:
            raise SettingError(
                "backbone.channels=null: the maps of two networks are summed; give a width, 512"
            )
        if self.first.conditioned and self.second.conditioned:
            raise SettingError("backbone.first, backbone.second: only one of them may be a diffusion model")

    @property
    def conditioned(self) -> bool:
        """Whether one of them is."""
        return self.first.conditioned or self.second.conditioned

    def load(self, mapped: bool = False) -> tuple[Features, ConditioningSpec | None]:
        """Both networks."""
        parts, condition = [], None
        for name, own in (("first", self.first), ("second", self.second)):
            try:
                features, its = own.load(mapped)
            except UserError as error:  # it names the settings as those of a network alone
                settings = "|".join(field.name for field in fields(own))
                text = re.sub(rf"\bbackbone\.(?=({settings})\b)", f"backbone.{name}.", str(error))
                raise type(error)(text) from error
            features.check_size(own.input_size, f"backbone.{name}.input_size")
            parts.append(Part(features, own.input_size, own.conditioned))
            condition = condition or its
        return JointFeatures(parts), condition

    def projections(self, features: Features) -> JointPyramid:
        """Those of both networks."""
        networks: Any = features.networks
        pairs = zip((self.first, self.second), networks, strict=True)
        return JointPyramid([replace(own, channels=self.channels).projections(its) for own, its in pairs])
