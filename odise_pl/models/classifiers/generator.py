"""Classes by generated features (ZS3Net, arXiv 1906.00817).

A network makes features of names, and a vocabulary's classifier is fitted to them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.errors import check_number
from odise_pl.models.classifiers.text import TextClasses, at_least_float32

_STEPS, _RATE = 300, 0.02  # of the fit: its loss is convex
_AT_ONCE = 1024  # features in a step; at least one of each class
_SEED = 0  # of the features that a classifier is fitted to


@dataclass(frozen=True)
class GeneratorSettings:
    """Sizes of a :class:`FeatureGenerator`; the defaults are the published ones.

    Attributes:
        hidden: width of its hidden layer.
        noise: random numbers that it takes beside a name.
        samples: features of each class in a training step.
    """

    hidden: int = 256
    noise: int = 300
    samples: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            check_number(f"model.generator.{field.name}", getattr(self, field.name), 1)

    def build(self, text_dim: int, channels: int) -> FeatureGenerator:
        """A generator with random weights: embedded names of ``text_dim`` to features of ``channels``."""
        return FeatureGenerator(text_dim, channels, self)


class FeatureGenerator(nn.Module):
    """Makes features like those of a pixel of a class, from its embedded name and noise (section 3.2)."""

    def __init__(self, text_dim: int, channels: int, settings: GeneratorSettings) -> None:
        super().__init__()
        self.noise, self.samples, self.channels = settings.noise, settings.samples, channels
        self.layers = nn.Sequential(
            nn.Linear(text_dim + settings.noise, settings.hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.5),
            nn.Linear(settings.hidden, channels),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, text: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Features [..., channels] for names [..., text_dim], each with noise of its own, uniform in 0..1."""
        device = text.device if random is None else random.device
        noise = torch.rand(*text.shape[:-1], self.noise, generator=random, device=device)
        features: Tensor = self.layers(torch.cat([F.normalize(text, dim=-1), noise.to(text)], dim=-1))
        return features

    def of_classes(self, classes: TextClasses) -> Tensor:
        """``samples`` features of each class, from its names in turn: [K, samples, channels]."""
        return self(_names_in_turn(classes, self.samples))


def fit_classifier(generator: FeatureGenerator, classes: TextClasses) -> Tensor:
    """Weights and bias [K, channels + 1] of a linear classifier of generated features.

    It depends on the generator and the names alone: the features are drawn with a fixed seed.
    """
    device, count = classes.embeddings.device, len(classes.counts)
    random = torch.Generator().manual_seed(_SEED)
    each = max(1, _AT_ONCE // count)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),  # the fit does not depend on the precision
    ):
        classes = TextClasses(classes.embeddings.clone(), classes.counts)
        weight = classes.embeddings.new_zeros(count, generator.channels + 1, requires_grad=True)
        labels = torch.arange(count, device=device).repeat_interleave(each)
        optimizer = torch.optim.Adam([weight], lr=_RATE)
        training = generator.training
        generator.eval()
        for step in range(_STEPS):
            with torch.no_grad():
                features = generator(_names_in_turn(classes, each, step * each), random).flatten(0, 1)
            loss = F.cross_entropy(classify_features(features, weight), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        generator.train(training)
    return weight.detach()


def classify_features(features: Tensor, weight: Tensor) -> Tensor:
    """Logits [..., K] of features [..., C] by weights and bias [K, C + 1], in float32 or better."""
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(at_least_float32(features), weight[:, :-1], weight[:, -1])


def _names_in_turn(classes: TextClasses, count: int, first: int = 0) -> Tensor:
    """``count`` embedded names of each class from number ``first``, which repeat: [K, count, D]."""
    counts = torch.as_tensor(classes.counts, device=classes.embeddings.device)
    turns = torch.arange(first, first + count, device=counts.device) % counts[:, None]
    return classes.embeddings[(counts.cumsum(0) - counts)[:, None] + turns]
