"""What stands for a captioning model in the small world: of sentences that people wrote, the one that fits.

It takes BLIP's place when captions are written into shards. The sentences are those under other pictures of
the whole world; CLIP chooses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.backbones.clip import FrozenCLIP, load_clip
from odise_pl.toyworld.captions import write_caption
from odise_pl.toyworld.scene import paint_scene
from odise_pl.toyworld.sizes import CLIP
from odise_pl.toyworld.style import WEB

_SEED = 77  # of pictures that are in no data set


class ChosenSentences:
    """Describes an image by one of many sentences.

    Args:
        clip: it compares them.
        sentences: to choose from.
    """

    def __init__(self, clip: FrozenCLIP, sentences: Sequence[str]) -> None:
        self.clip, self.sentences = clip, sentences
        self.text = F.normalize(clip.encode_text(sentences), dim=-1)

    @property
    def mean(self) -> Tensor:
        """Lies where images have to be."""
        return self.clip.mean

    def pixels(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in 0..1 as CLIP takes them: [N, 3, S, S]."""
        return self.clip.preprocess(images)

    @torch.no_grad()
    def caption(self, pixels: Tensor) -> list[str]:
        """The sentence that is most like each image."""
        image = F.normalize(self.clip.model.encode_image(pixels), dim=-1)
        return [self.sentences[index] for index in (image @ self.text.T).argmax(1).tolist()]


class SentenceModel:
    """The small world's counterpart of :class:`~odise_pl.data.prepare.captioning.CaptionModel`.

    Args:
        weights: of the small world's CLIP.
        count: sentences to choose from.
    """

    name = "the sentence that the small world's CLIP chooses"
    max_tokens = CLIP.text_length

    def __init__(self, weights: str, count: int = 2000) -> None:
        self.weights, self.count = weights, count

    def on(self, index: int) -> ChosenSentences:
        """The model, on the processor."""
        return _loaded(self.weights, self.count)

    def digest(self) -> str:
        """Changes with what it computes."""
        model = _loaded(self.weights, self.count)
        state = [value.numpy().tobytes() for value in model.clip.model.state_dict().values()]
        return hashlib.sha256(b"\0".join([*(part.encode() for part in model.sentences), *state])).hexdigest()


@cache
def _loaded(weights: str, count: int) -> ChosenSentences:
    return ChosenSentences(FrozenCLIP(load_clip(weights, CLIP)), sentences(count))


def sentences(count: int) -> list[str]:
    """Captions of ``count`` pictures of the whole world, each the same for the same place in the list."""
    randoms = (np.random.default_rng([_SEED, number]) for number in range(count))
    return [write_caption(paint_scene(random, WEB), random) for random in randoms]
