"""How the scores of the trained head and of CLIP become one: settings and pure functions.

Throughout: K classes; tensors [..., K] are of masks. ``docs/methods.md`` says which method uses which rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odise_pl.errors import SettingError, check_flag, check_number
from odise_pl.models.classifiers.regions import REGIONS

MODES = ("both", "diffusion", "discriminative")


@dataclass(frozen=True)
class ClassifierSettings:
    """Class scoring at inference (section 3.5 of the paper).

    Attributes:
        mode: ``diffusion`` scores (of the trained head), ``discriminative`` scores (of CLIP), or ``both``
            fused.
        seen_share: exponent of CLIP for classes that share a name with a training class (alpha).
        unseen_share: exponent of CLIP for all other classes (beta).
        mask_prompt: prompt of class names for the mask embeddings; ``{}`` is the name. Several prompts count
            as the mean of their normalised embeddings.
        clip_prompt: the same for CLIP.
        word_vectors: text files with vectors of words, as fastText's; with a dense head their means embed
            names in place of CLIP.
        mean_of_names: a class is the mean of its names' embeddings instead of its best name.
        regions: how CLIP sees a mask: ``masked`` (MaskCLIP), ``cropped`` or ``pooled`` (convolutional CLIP).
        crop_threshold: probability from which a pixel belongs to a ``cropped`` mask.
        rule: how both scores are fused, see :data:`RULES`.
        objectness_share: how much CLIP's confidence in its best class lowers the probability of no object
            (lambda of COAT).
    """

    mode: str = "both"
    seen_share: float = 0.3
    unseen_share: float = 0.7
    mask_prompt: str | Sequence[str] = "{}"
    clip_prompt: str | Sequence[str] = "a photo of a {}."
    word_vectors: Sequence[str] = ()
    mean_of_names: bool = False
    regions: str = "masked"
    crop_threshold: float = 0.5
    rule: str = "normalised"
    objectness_share: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in {"mode": MODES, "regions": REGIONS, "rule": RULES}.items():
            if (value := getattr(self, name)) not in choices:
                section = "classifier" if name == "mode" else "fusion"
                raise SettingError(f"{section}.{name}={value}: choose one of {', '.join(choices)}")
        for name in ("seen_share", "unseen_share", "crop_threshold", "objectness_share"):
            check_number(f"fusion.{name}", getattr(self, name), 0, whole=False, most=1)
        for name in ("mask_prompt", "clip_prompt"):
            value = getattr(self, name)
            prompts = [value] if isinstance(value, str) else value
            listed = isinstance(prompts, Sequence) and len(prompts) > 0
            if not listed or not all(isinstance(one, str) and "{}" in one for one in prompts):
                raise SettingError(f"fusion.{name}={value!r} needs {{}} for the class name, or a list of it")
        if self.objectness_share and self.mode == "diffusion":
            raise SettingError(
                f"fusion.objectness_share={self.objectness_share} needs CLIP's scores of masks: set it to 0, "
                "or choose classifier=both if the head has masks"
            )
        check_flag("fusion.mean_of_names", self.mean_of_names)
        if isinstance(self.word_vectors, str):
            raise SettingError(f"fusion.word_vectors={self.word_vectors}: give a list, [{self.word_vectors}]")


@dataclass(frozen=True)
class Scores:
    """Class scores of masks, for a rule of fusion.

    Attributes:
        head: logits [..., K] of the trained head.
        head_none: [..., 1], its logit of no object.
        no_object: [..., 1], the probability of no object.
        clip: logits [..., K] of CLIP.
        clip_share: [K], exponent of CLIP's probabilities.
        seen: bool [K], whether a class shares a name with a training class.
    """

    head: Tensor
    head_none: Tensor
    no_object: Tensor
    clip: Tensor
    clip_share: Tensor
    seen: Tensor | None = None


def fuse(mask_logits: Tensor, clip_logits: Tensor, clip_share: Tensor) -> Tensor:
    """Geometric mean of two class distributions (equation 7 of the paper).

    Args:
        mask_logits: [..., K] of the trained head.
        clip_logits: [..., K] of CLIP.
        clip_share: [K], exponent of CLIP's probability of each class.

    Returns:
        probabilities [..., K] that sum to 1.
    """
    log_p = mask_logits.log_softmax(-1) * (1 - clip_share) + clip_logits.log_softmax(-1) * clip_share
    return log_p.softmax(-1)


def fuse_normalised(scores: Scores) -> Tensor:
    """ODISE, FC-CLIP: :func:`fuse` among the classes; no object has the head's probability."""
    return with_no_object(fuse(scores.head, scores.clip, scores.clip_share), scores.no_object)


def fuse_product(scores: Scores) -> Tensor:
    """SimBaseline (arXiv 2112.14757): the geometric mean is not normalised.

    The head's probabilities are among its classes and no object, CLIP's among the classes.
    """
    return _not_normalised(scores, scores.clip.softmax(-1))


def fuse_flat_seen(scores: Scores) -> Tensor:
    """ZegFormer (arXiv 2112.07910): as :func:`fuse_product`, but CLIP does not rank the seen classes.

    Each of them gets the mean of CLIP's probabilities over all of them. The head's logit of no object is also
    among CLIP's.
    """
    assert scores.seen is not None
    clip = torch.cat([scores.clip, scores.head_none], dim=-1).softmax(-1)[..., :-1]
    flat = (clip * scores.seen).sum(-1, keepdim=True) / scores.seen.sum().clamp(min=1)
    return _not_normalised(scores, torch.where(scores.seen, flat, clip))


def _not_normalised(scores: Scores, clip: Tensor) -> Tensor:
    head = scores.head.softmax(-1) * (1 - scores.no_object)
    joint = head ** (1 - scores.clip_share) * clip**scores.clip_share
    return torch.cat([joint, scores.no_object], dim=-1)


# each returns scores [..., K + 1] with no object last; a mask is one if nothing scores more
RULES: dict[str, Callable[[Scores], Tensor]] = {
    "normalised": fuse_normalised,
    "product": fuse_product,
    "flat_seen": fuse_flat_seen,
}


def adjust_no_object(no_object: Tensor, clip_logits: Tensor, share: float) -> Tensor:
    """COAT (arXiv 2603.21386): no object is less probable where CLIP is sure of a class.

    Args:
        no_object: [..., 1], its probability.
        clip_logits: [..., K] of CLIP.
        share: lambda of the paper, 0..1.
    """
    return no_object * (1 - share * clip_logits.softmax(-1).amax(-1, keepdim=True))


def with_no_object(probabilities: Tensor, no_object: Tensor) -> Tensor:
    """Probabilities of classes and no object.

    Args:
        probabilities: [..., K] conditional on an object.
        no_object: [..., 1], probability of no object.

    Returns:
        [..., K + 1], no object last.
    """
    joint = torch.cat([probabilities * (1 - no_object), no_object], dim=-1)
    return (joint + 1e-8).log().softmax(-1)  # rounds as the published network, whose logits these are
