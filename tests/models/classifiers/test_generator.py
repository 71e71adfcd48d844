from __future__ import annotations

import torch

from odise_pl.models.classifiers.generator import (
    FeatureGenerator,
    GeneratorSettings,
    classify_features,
    fit_classifier,
)
from odise_pl.models.classifiers.text import TextClasses

SETTINGS = GeneratorSettings(hidden=16, noise=3, samples=5)


def generator() -> FeatureGenerator:
    torch.manual_seed(0)
    return SETTINGS.build(text_dim=4, channels=6)


def classes() -> TextClasses:
    """Three classes, the second with two names."""
    return TextClasses(torch.eye(4), (1, 2, 1))


def test_features_are_of_the_names_of_a_class_in_turn() -> None:
    made = generator().eval()
    made.layers[0].weight.data[:, 4:] = 0  # without noise
    features = made.of_classes(classes())
    assert features.shape == (3, 5, 6)
    owners = [[0] * 5, [1, 2, 1, 2, 1], [3] * 5]
    for row, names in zip(features, owners, strict=True):
        torch.testing.assert_close(row, made(torch.eye(4)[names]))


def test_noise_changes_features() -> None:
    features = generator().eval().of_classes(classes())
    assert features[0].unique(dim=0).shape[0] == 5


def test_fitted_classifier_names_generated_features() -> None:
    made = generator().eval()
    with torch.inference_mode():  # as in validation
        weight = fit_classifier(made, classes())
        torch.testing.assert_close(fit_classifier(made, classes()), weight, rtol=0, atol=0)
        found = classify_features(made.of_classes(classes()), weight).argmax(-1)
    assert weight.shape == (3, 7)
    assert torch.equal(found, torch.arange(3)[:, None].expand(3, 5))
    assert all(p.grad is None for p in made.parameters())


def test_classes_with_the_same_features_are_equally_likely() -> None:
    made = generator()
    for layer in (made.layers[0], made.layers[3]):
        layer.weight.data.zero_()
    assert made.training
    logits = classify_features(made.eval().of_classes(classes()), fit_classifier(made, classes()))
    torch.testing.assert_close(logits.softmax(-1), torch.full((3, 5, 3), 1 / 3), rtol=1e-3, atol=1e-3)
