"""Networks that name every pixel by itself."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.build import GeneratorSettings
from odise_pl.models.classifiers.fusion import ClassifierSettings

WORDS = tiny_models.vocabulary(("dog", "puppy"), ("sky",), ("traffic light",))


def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cosine", [True, False])
@torch.no_grad()
def test_pixels_have_the_score_of_their_best_name(cosine: bool) -> None:
    network = tiny_models.dense(cosine=cosine, logit_scale=20.0).eval()
    (output,) = network.decode(images())
    (training,) = network(images(), network.encode_names(WORDS))
    texts = network.clip.encode_text([name for names in WORDS.labels for name in names])
    maps = output.mask_embed.mT.unflatten(2, (16, 32))
    for image in range(2):
        for y, x in [(0, 0), (3, 17), (15, 31)]:
            pixel = maps[image, :, y, x]
            length = pixel.norm() if cosine else 1
            scores = [20 * float(pixel @ text / text.norm() / length) for text in texts]
            expected = torch.tensor([max(scores[:2]), scores[2], scores[3]])
            torch.testing.assert_close(
                training.class_logits[image, 32 * y + x], expected, rtol=1e-4, atol=1e-4
            )


@torch.no_grad()
def test_padding_does_not_show_in_results() -> None:
    network = tiny_models.dense("deeplab").eval()
    classes = network.prepare(WORDS, None)
    first, second = network.predict(images(), [(64, 128), (50, 100)], [(32, 64), (50, 100)], classes)
    cells = network(images(), network.encode_names(WORDS))[0].class_logits.mT.unflatten(2, (16, 32))
    full = F.interpolate(cells, (64, 128), mode="bilinear")
    assert torch.equal(first.semantic, F.interpolate(full[:1], (32, 64), mode="bilinear")[0].argmax(0))
    assert torch.equal(second.semantic, full[1, :, :50, :100].argmax(0))


def test_only_the_generator_learns_from_features_without_dropout() -> None:
    network = tiny_models.dense("deeplab", GeneratorSettings(hidden=8, noise=2, samples=3)).train()
    classes = network.encode_names(WORDS)
    (first,), (second,) = (network(images(), classes) for _ in "12")
    assert torch.equal(first.mask_embed, second.mask_embed)
    assert first.generated is not None
    assert first.generated.shape == (3, 3, 64)
    first.generated.sum().backward()
    learned = {name for name, p in network.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in network.named_parameters() if name.startswith("generator.")}


@torch.no_grad()
def test_generated_classifier_names_the_features_of_cells() -> None:
    network = tiny_models.dense("aspp", GeneratorSettings(hidden=8, noise=2, samples=3)).eval()
    classes = network.prepare(WORDS, None)
    weight = classes.mask_text.embeddings
    assert weight.shape == (3, 65)
    (found,) = network.predict(images()[:1], [(64, 128)], [(2, 4)], classes)
    cells = network.decode(images()[:1])[0].pooled[0]  # stride 32
    logits = torch.stack([weight[:, :-1] @ cell + weight[:, -1] for cell in cells])
    full = F.interpolate(logits.T.view(1, 3, 2, 4), (64, 128), mode="bilinear")
    assert torch.equal(found.semantic, F.interpolate(full, (2, 4), mode="bilinear")[0].argmax(0))


def test_only_the_head_names_pixels() -> None:
    network = tiny_models.dense().eval()
    network.classifier = ClassifierSettings(regions="pooled")
    with pytest.raises(SettingError, match="classifier=diffusion"):
        network.predict(images(), [(64, 128)] * 2, [(64, 128)] * 2, network.prepare(WORDS, None))
