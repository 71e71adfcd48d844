"""Settings of the captioners: each returns a function that makes the captioner of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from odise_pl.errors import SettingError
from odise_pl.models.backbones.captioners import Describe, EmptyCaptioner, ImplicitCaptioner, TextCaptioner
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.backbones.contract import ConditioningSpec
from odise_pl.models.backbones.sentences import NameRanking
from odise_pl.models.blip import load_blip
from odise_pl.vocabulary import load_vocabulary

# Makes a captioner from the shared CLIP and the conditioning that the backbone's network takes; None where it
# takes none.
MakeCaptioner = Callable[[FrozenCLIP, ConditioningSpec], nn.Module] | None


def none_captioner() -> MakeCaptioner:
    """None, for backbones without conditioning: all but diffusion models."""
    return None


def implicit_captioner(learnable_time: bool = True) -> MakeCaptioner:
    """The published captioner (section 3.3); ``learnable_time`` also learns a time embedding."""
    return lambda clip, to: ImplicitCaptioner(clip, to.uncond, to.time_width(learnable_time), to.steps)


def empty_captioner(learnable_time: bool = False) -> MakeCaptioner:
    """The empty text for every image; ``learnable_time`` as in :func:`implicit_captioner`."""
    return lambda clip, to: EmptyCaptioner(clip, to.uncond, to.time_width(learnable_time), to.steps)


def heuristic_captioner(
    vocabulary: str | Sequence[Any] = "coco_panoptic",
    top: int = 5,
    template: str = "a photo of {}.",
    prompt: str = "a photo of a {}.",
    remember: int = 256,
    learnable_time: bool = False,
) -> MakeCaptioner:
    """The names of a vocabulary that CLIP ranks highest for the image.

    Args:
        vocabulary: see :func:`load_vocabulary`; only main names are ranked.
        top, template, prompt: see :class:`NameRanking`.
        remember: number of cached sentences; 0.24 MB each for SD 1.x.
        learnable_time: as in :func:`implicit_captioner`.
    """

    def make(clip: FrozenCLIP, condition: ConditioningSpec) -> nn.Module:
        ranking = NameRanking(clip, load_vocabulary(vocabulary).names, top, template, prompt)
        return _text_captioner(clip, condition, ranking, remember, learnable_time)

    return make


def blip_captioner(
    on_the_fly: bool = False,
    weights: str = "Salesforce/blip-image-captioning-base",
    max_tokens: int = 20,
    remember: int = 256,
    learnable_time: bool = False,
    source: str = "",
) -> MakeCaptioner:
    """BLIP captions.

    Args:
        on_the_fly: False uses the caption of the whole image that ``odise captions`` wrote into the
            shards, for all windows. True loads BLIP and captions every window.
        weights, max_tokens: see :func:`load_blip`; used on the fly only.
        remember: number of cached sentences; 0.24 MB each for SD 1.x.
        learnable_time: as in :func:`implicit_captioner`.
        source: download command of the weights, for messages.
    """

    def make(clip: FrozenCLIP, condition: ConditioningSpec) -> nn.Module:
        describe = load_blip(weights, max_tokens) if on_the_fly else None
        return _text_captioner(clip, condition, describe, remember, learnable_time)

    return make


def _text_captioner(
    clip: FrozenCLIP,
    condition: ConditioningSpec,
    describe: Describe | None,
    remember: int,
    learnable_time: bool,
) -> TextCaptioner:
    if condition.encode is None:
        raise SettingError(
            "captioner: the backbone reads no text; choose captioner=implicit or captioner=empty"
        )
    time_dim = condition.time_width(learnable_time)
    return TextCaptioner(clip, describe, condition.encode, time_dim, condition.steps, remember)
