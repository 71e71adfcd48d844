"""The shared convolutional CLIP as the backbone (FC-CLIP, arXiv 2308.02487): one network, one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from odise_pl.errors import SettingError
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.backbones.contract import Conditioning, ConditioningSpec, Features, Tap
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.pyramid import STRIDES


class ClipFeatures(Features):
    """Maps of the four stages of a convolutional CLIP, which belongs to the whole network.

    Args:
        clip: the shared CLIP.

    Raises:
        SettingError: it is no convolutional network with four stages.
    """

    input_multiple = STRIDES[-1]
    is_clip = True

    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__()
        if not clip.convolutional:
            raise SettingError("backbone=clip needs a convolutional CLIP: choose clip=convnext_l_320")
        self._clip = (clip,)  # in no attribute of its own: its weights would have two names

    @property
    def trained(self) -> bool:
        """Whether CLIP's image encoder is."""
        return self._clip[0].trained

    @property
    def taps(self) -> list[Tap]:
        """The stages."""
        infos = self._clip[0].model.visual.trunk.feature_info
        return [Tap(info["module"], info["num_chs"], info["reduction"], pooled=True) for info in infos]

    def blocks(self) -> Iterator[nn.Module]:
        """None: they are CLIP's."""
        yield from ()

    def forward(self, images: Tensor, conditioning: Conditioning | None = None) -> list[Tensor]:
        """Maps of all stages for images [N, 3, H, W] in 0..1."""
        return self._clip[0].maps(images)


@dataclass(frozen=True, kw_only=True)
class ClipFeatureSettings(FeatureSettings):
    """Settings of :class:`ClipFeatures`; its weights are those of ``clip``."""

    conditioned = False

    def load(self, mapped: bool = False) -> tuple[Features, ConditioningSpec | None]:
        """Refused: without the whole network there is no CLIP."""
        raise SettingError("backbone=clip is a part of a whole network: choose another backbone here")

    def load_beside(self, clip: FrozenCLIP, mapped: bool = False) -> tuple[Features, ConditioningSpec | None]:
        """The features of ``clip``."""
        return ClipFeatures(clip), None
