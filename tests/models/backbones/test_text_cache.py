from __future__ import annotations

from collections.abc import Sequence

import tiny_models
import torch
from torch import Tensor

from odise_pl.models.backbones.text_cache import TextCache
from odise_pl.models.backbones.text_encoders import TextEncoder

CPU = torch.device("cpu")


class Encoder:
    """Records what it encodes."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[float(len(text)), float(sum(map(ord, text)))] for text in texts])


def test_recent_texts_are_encoded_once() -> None:
    encoder = Encoder()
    cache = TextCache(encoder, limit=2)
    assert torch.equal(cache(["a dog", "a cat", "a dog"], CPU), Encoder()(["a dog", "a cat", "a dog"]))
    assert torch.equal(cache(["a cat", "a dog"], CPU), Encoder()(["a cat", "a dog"]))
    assert encoder.asked == ["a dog", "a cat"]
    cache(["sky"], CPU)  # replaces "a dog", which is the oldest
    cache(["a cat"], CPU)
    assert encoder.asked == ["a dog", "a cat", "sky"]
    more = ["a cow", "a dog", "sky"]
    assert torch.equal(cache(more, CPU), Encoder()(more))
    assert encoder.asked[3:] == ["a cow", "a dog"]


def test_encodings_from_inference_mode_can_be_trained_with() -> None:
    cache = TextCache(TextEncoder(tiny_models.diffusion().text_encoder))
    with torch.inference_mode():
        cache(["a dog"], CPU)
    weight = torch.ones(32, requires_grad=True)
    (cache(["a dog"], CPU) * weight).sum().backward()
    assert weight.grad is not None
