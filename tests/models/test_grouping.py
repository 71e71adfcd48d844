"""The inference rules of GroupViT, each against a slow loop."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from tiny_models import GROUPVIT
from torch import Tensor
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones.groupvit import GroupViTSettings
from odise_pl.models.build import build_groupvit
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.grouping import (
    GroupingNetwork,
    GroupingSettings,
    GroupPrediction,
    add_background,
    group_masks,
    multiply_assignments,
    score_groups,
)
from odise_pl.models.ops.bands import Masks
from odise_pl.vocabulary import Vocabulary, load_vocabulary

WORDS = load_vocabulary(["background,wall", "dog,puppy", "cat", "grass:stuff", "sky:stuff"])


def random(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


@pytest.fixture(scope="module")
def network() -> GroupingNetwork:
    torch.manual_seed(3)
    return build_groupvit(
        GroupViTSettings(architecture=replace(GROUPVIT, text_layers=1)),
        ClassifierSettings(mode="discriminative"),
        GroupingSettings(window=48, best_classes=2, background_threshold=0.3),
    ).eval()


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def test_assignments_are_multiplied_through_the_stages() -> None:
    first, second = random(2, 6, 9).softmax(1), random(2, 3, 6).softmax(1)
    found = multiply_assignments([first, second])
    for n, group, patch in product(range(2), range(3), range(9)):
        expected = sum(float(first[n, k, patch] * second[n, group, k]) for k in range(6))
        assert float(found[n, group, patch]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 9))


def interpolated(grid: Tensor, side: int, y: int, x: int) -> Tensor:
    """Bilinear value [G] of a grid [G, n, n] at a pixel."""
    cells = grid.shape[-1]
    places = [max(0.0, (p + 0.5) * cells / side - 0.5) for p in (y, x)]
    value = torch.zeros(len(grid))
    for dy, dx in product((0, 1), repeat=2):
        corner, share = [], 1.0
        for place, step in zip(places, (dy, dx), strict=True):
            low = int(place)
            corner.append(min(low + step, cells - 1))
            share *= place - low if step else 1 - (place - low)
        value += share * grid[:, corner[0], corner[1]]
    return value


def test_pixels_belong_to_the_best_interpolated_group() -> None:
    assignment = random(1, 3, 9).softmax(1)
    masks = group_masks(assignment, 10)
    for y, x in product(range(10), repeat=2):
        best = int(interpolated(assignment[0].view(3, 3, 3), 10, y, x).argmax())
        assert masks[0, :, y, x].tolist() == [float(group == best) for group in range(3)]


def slow_scores(group_logits: list[float], whole: list[float], best_classes: int) -> list[float]:
    kept = sorted(range(len(whole)), key=lambda k: -whole[k])[:best_classes]
    among_all = softmax(group_logits)
    among_kept = dict(zip(kept, softmax([group_logits[k] for k in kept]), strict=True))
    return [among_kept.get(k, 0.0) * among_all[k] for k in range(len(whole))]


@pytest.mark.parametrize("best_classes", [1, 5, 9])
def test_groups_are_named_by_the_best_classes_of_the_window(best_classes: int) -> None:
    logits, whole = 3 * random(2, 3, 7), random(2, 7)
    found = score_groups(logits, whole, best_classes)
    for n, group in product(range(2), range(3)):
        expected = slow_scores(logits[n, group].tolist(), whole[n].tolist(), best_classes)
        assert found[n, group].tolist() == pytest.approx(expected, abs=1e-6)


def slow_background(scores: list[list[float]], background: int, threshold: float) -> list[list[float]]:
    reached = min(threshold, max(map(max, scores)))
    return [
        [float(max(group) < reached) if k == background else score for k, score in enumerate(group)]
        for group in scores
    ]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
def test_groups_below_the_threshold_are_background(threshold: float) -> None:
    clear = torch.tensor([[0, 0.97, 0.01], [0, 0.2, 0.6], [0, 0.3, 0.2]])
    scores = torch.stack([clear, 0.2 * clear])  # no group of the second window reaches a high threshold
    found = add_background(scores, 0, threshold)
    for n in range(2):
        for group, expected in zip(found[n], slow_background(scores[n].tolist(), 0, threshold), strict=True):
            assert group.tolist() == pytest.approx(expected)
        assert (found[n, :, 0] == 0).any()  # the best group is never background


def starts(length: int, side: int, stride: int) -> list[int]:
    count = math.ceil(max(0, length - side) / stride) + 1
    return [min(i * stride, length - side) for i in range(count)]


def slow_prediction(
    network: GroupingNetwork, image: Tensor, words: Vocabulary, output: tuple[int, int]
) -> Tensor:
    """Class scores [K, *output], window by window, group by group."""
    settings, height, width = network.inference, *image.shape[1:]
    names = [
        [] if c.name == "background" else [f"a photo of a {n}." for n in c.names] for c in words.categories
    ]
    embedded = [[F.normalize(network.backbone.encode_text([n])[0], dim=0) for n in of] for of in names]
    total, count = torch.zeros(len(words), height, width), torch.zeros(height, width)
    for top, left in product(starts(height, 48, 24), starts(width, 48, 24)):
        segments, stages = network.backbone.group(image[None, :, top : top + 48, left : left + 48])

        def logits(segment: Tensor) -> list[float]:
            v = F.normalize(network.backbone.embed_segments(segment[None])[0], dim=0)
            return [
                max((float(network.backbone.logit_scale * v @ t) for t in of), default=-1e9)
                for of in embedded
            ]

        whole = logits(segments[0].mean(0))
        scores = [slow_scores(logits(segment), whole, settings.best_classes) for segment in segments[0]]
        if names[0] == []:
            scores = slow_background(scores, 0, settings.background_threshold)
        owner = group_masks(multiply_assignments(stages), 48)[0].argmax(0)
        total[:, top : top + 48, left : left + 48] += torch.tensor(scores)[owner].permute(2, 0, 1)
        count[top : top + 48, left : left + 48] += 1
    return F.interpolate((total / count)[None], output, mode="bilinear")[0]


@torch.no_grad()
@pytest.mark.parametrize("words", [WORDS, load_vocabulary(["dog", "cat,kitten", "grass:stuff"])])
@pytest.mark.parametrize("output", [(60, 81), (90, 70)])
def test_prediction_equals_slow_loop(
    network: GroupingNetwork, words: Vocabulary, output: tuple[int, int]
) -> None:
    canvas = random(1, 3, 128, 128).sigmoid()
    expected = slow_prediction(network, canvas[0, :, :60, :81], words, output)
    (found,) = network.predict(canvas, [(60, 81)], [output], network.prepare(words, None))
    best, second = expected.topk(2, dim=0).values
    clear = best - second > 1e-5
    assert clear.float().mean() > 0.9
    assert torch.equal(found.semantic[clear], expected.argmax(0)[clear])
    assert len(expected.argmax(0).unique()) > 1
    ids, means = found.panoptic.ids, {s.id: s.score for s in found.panoptic.segments}
    for segment in found.panoptic.segments:
        assert torch.equal(ids == segment.id, found.semantic == segment.category)
        assert means[segment.id] == pytest.approx(float(best[ids == segment.id].mean()), abs=1e-4)
        assert segment.isthing == words.isthing[segment.category]
    assert len(means) == len(found.semantic.unique())
    assert found.instances.masks.shape == (0, *output)


@torch.no_grad()
def test_images_below_a_window_or_a_patch_are_segmented(network: GroupingNetwork) -> None:
    classes = network.prepare(WORDS, None)
    canvas = random(2, 3, 64, 64).sigmoid()
    for found in network.predict(canvas, [(37, 50), (9, 64)], [(20, 30), (5, 33)], classes):
        assert ((found.semantic >= 0) & (found.semantic < len(WORDS))).all()


def test_background_alone_is_a_name(network: GroupingNetwork) -> None:
    alone = network.prepare(load_vocabulary(["background"]), None)
    assert alone.clip_text.counts == (1,)
    (found,) = network.predict(torch.rand(1, 3, 64, 64), [(64, 64)], [(64, 64)], alone)
    assert found.semantic.unique().tolist() == [0]
    assert found.best == (0, pytest.approx(1))


def test_pixels_have_the_best_class_of_their_groups() -> None:
    masks = F.one_hot(torch.tensor([[0, 0], [1, 1]])).permute(2, 0, 1).float()
    found = GroupPrediction(Masks(masks), torch.tensor([[0.0, 0.2, 0.1], [0.4, 0.1, 0]]), [True] * 3)
    assert found.semantic.tolist() == [[1, 1], [0, 0]]
    assert found.best == (0, pytest.approx(0.4))


def test_settings_out_of_range_are_named() -> None:
    for name, value in {"window": 0, "best_classes": 0, "background_threshold": 2}.items():
        with pytest.raises(SettingError, match=f"model.inference.{name}"):
            GroupingSettings(**{name: value})
