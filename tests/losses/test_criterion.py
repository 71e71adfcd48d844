from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made import CLASSES, QUERIES, halved, predictions, seeded, target
from torch import Tensor
from torch.nn import functional as F

from odise_pl.losses.criterion import LossWeights, MaskLosses, SetCriterion
from odise_pl.losses.errors import NonFiniteError
from odise_pl.losses.matcher import HungarianMatcher, Match
from odise_pl.structures import MaskPredictions, Targets


def criterion(points: int = 64, weights: LossWeights | None = None) -> SetCriterion:
    # all points are random, so they do not depend on the predictions
    matcher = HungarianMatcher(num_points=points)
    return SetCriterion(matcher, weights or LossWeights(), num_points=points, oversample=1, importance=0)


class Fixed(HungarianMatcher):
    """Returns given matches and draws no random numbers."""

    def __init__(self, matches: list[Match]) -> None:
        super().__init__()
        self.matches = matches

    def __call__(self, *_: object) -> list[Match]:
        return self.matches


def total(losses: list[MaskLosses]) -> Tensor:
    return torch.stack([loss.classification + loss.mask + loss.dice for loss in losses]).sum()


def test_losses_equal_loop() -> None:
    p, targets = predictions(), [target(2), target(3, 1)]
    matches = [Match(torch.tensor([1, 4]), torch.tensor([1, 0])),
               Match(torch.tensor([0, 2, 3]), torch.tensor([2, 0, 1]))]  # fmt: skip
    loss = SetCriterion(
        Fixed(matches), LossWeights(2, 5, 7), no_object_weight=0.1, num_points=40, oversample=1, importance=0
    )([p], targets, seeded(3), [0, 1])[0]

    draw = seeded(3)
    draw(5, 40, 2)  # the unused candidates
    points = draw(5, 40, 2)
    mask, dice, ce, weights, pair = 0.0, 0.0, 0.0, 0.0, 0
    for b in range(2):
        wanted = [CLASSES] * QUERIES
        for q, j in zip(matches[b].queries.tolist(), matches[b].targets.tolist(), strict=True):
            wanted[q] = int(targets[b].labels[j])
            grid = (2 * points[pair] - 1)[None, :, None]
            x = F.grid_sample(p.mask_logits[b, q][None, None], grid, align_corners=False).flatten()
            t = F.grid_sample(targets[b].masks[j].float()[None, None], grid, align_corners=False).flatten()
            mask += F.binary_cross_entropy_with_logits(x, t)
            s = x.sigmoid()
            dice += 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)
            pair += 1
        for q in range(QUERIES):
            weight = 0.1 if wanted[q] == CLASSES else 1.0
            ce += -weight * p.class_logits[b, q].log_softmax(0)[wanted[q]]
            weights += weight
    torch.testing.assert_close(loss.mask, 5 * mask / 5)
    torch.testing.assert_close(loss.dice, 7 * dice / 5)
    torch.testing.assert_close(loss.classification, 2 * ce / weights)


def test_losses_are_in_order_of_outputs() -> None:
    outputs = [predictions(seed=i) for i in range(3)]
    targets = [target(2), target(1)]
    losses = criterion()(outputs, targets, seeded(), [0, 1])
    alone = criterion()(outputs[:1], targets, seeded(), [0, 1])
    assert len(losses) == 3
    torch.testing.assert_close(total(losses[:1]), total(alone))
    total(losses).backward()
    for output in outputs:
        for logits in (output.class_logits, output.mask_logits):
            assert logits.grad is not None
            assert logits.grad.abs().sum() > 0


def test_only_the_last_output_is_classified() -> None:
    outputs, targets = [predictions(seed=i) for i in range(3)], [target(2), target(1)]
    every, last = (
        SetCriterion(HungarianMatcher(), LossWeights(), num_points=64, classify_last=flag)(
            outputs, targets, seeded(), [0, 1]
        )
        for flag in (False, True)
    )
    assert [one.classification.item() for one in last[:-1]] == [0, 0]
    assert last[-1] == every[-1]
    assert [(one.mask, one.dice) for one in last] == [(one.mask, one.dice) for one in every]
    total(last).backward()
    assert [bool(output.class_logits.grad.any()) for output in outputs] == [False, False, True]


def test_importance_sampling_prefers_uncertain_points() -> None:
    # the left half is uncertain and correct, the right half is certain, wrong and costly
    logits = torch.full((1, 1, 4, 4), 0.1)
    logits[..., 2:] = 20.0
    p = MaskPredictions(torch.zeros(1, 1, 2), logits, torch.zeros(1, 1, 1), torch.ones(()))
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[..., :2] = True
    matcher = Fixed([Match(torch.tensor([0]), torch.tensor([0]))])
    costs = [
        SetCriterion(matcher, LossWeights(), num_points=64, oversample=3, importance=share)(
            [p], [Targets(torch.tensor([0]), masks)], seeded(), [0]
        )[0].mask.item()
        for share in (0.0, 1.0)
    ]
    assert costs[1] < costs[0] / 5


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_targets_have_gradients(counts: tuple[int, int]) -> None:
    p = predictions()
    loss = criterion()([p], [target(n) for n in counts], seeded(), [0, 1])[0]
    if counts == (0, 0):
        assert loss.mask.item() == loss.dice.item() == 0
    (loss.classification + loss.mask + loss.dice).backward()
    assert p.class_logits.grad is not None
    assert p.mask_logits.grad is not None
    assert p.mask_logits.grad[0].abs().sum() == 0
    assert p.mask_logits.grad.isfinite().all()


def test_more_targets_than_queries_give_finite_losses() -> None:
    losses = criterion()([predictions()], [target(9), target(1)], seeded(), [0, 1])
    assert total(losses).isfinite()


def test_unlabelled_images_are_skipped() -> None:
    both, targets = predictions(), [target(2), target(1)]
    first = replace(both, class_logits=both.class_logits[:1], mask_logits=both.mask_logits[:1])
    found = criterion()([both], targets, seeded(), [0, 1], [True, False])
    torch.testing.assert_close(total(found), total(criterion()([first], targets[:1], seeded(), [0])))
    none = total(criterion()([both], targets, seeded(), [0, 1], [False, False]))
    assert none.item() == 0
    none.backward()
    assert both.mask_logits.grad is not None, "other ranks wait for gradients"
    assert not both.mask_logits.grad.any()


@pytest.mark.parametrize("term", ["classification loss", "matching cost"])
def test_non_finite_losses_are_named_and_have_gradients(term: str) -> None:
    outputs = [predictions(seed=i) for i in range(3)]
    with torch.no_grad():
        outputs[1].class_logits[0, 3] = float("nan")
    matcher = Fixed([Match(torch.tensor([0]), torch.tensor([0]))] * 2)
    own = (
        SetCriterion(matcher, LossWeights(), num_points=8) if term == "classification loss" else criterion(8)
    )
    with pytest.raises(NonFiniteError) as info:
        own(outputs, [target(1), target(1)], seeded(), [139, 785])
    named = "images [139, 785]: the classification loss of decoder output 1"
    assert (named if term == "classification loss" else "image 139: the matching cost") in str(info.value)
    assert "optimizer.lr" in str(info.value)
    total(info.value.losses).backward()
    assert all(output.class_logits.grad is not None for output in outputs)


def test_losses_are_float32_under_autocast() -> None:
    p, targets = predictions(), [target(2), target(1)]
    exact = criterion()([p], targets, seeded(), [0, 1])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = criterion()([halved(p)], targets, seeded(), [0, 1])[0]
    for name, value in vars(exact).items():
        assert getattr(rough, name).dtype == torch.float32
        torch.testing.assert_close(getattr(rough, name), value, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("setting", "value"), [("num_points", 0), ("oversample", 0.5), ("importance", 1.5), ("importance", -0.1)]
)
def test_settings_out_of_range_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}={value}"):
        SetCriterion(HungarianMatcher(), LossWeights(), **{setting: value})


def test_trained_clip_learns_the_classes_of_matched_masks() -> None:
    """OVRCOAT: cross-entropy of CLIP's logits at matched queries over the number of targets."""
    p, targets = predictions(), [target(2), target(3, 1)]
    matches = [Match(torch.tensor([1, 4]), torch.tensor([1, 0])),
               Match(torch.tensor([0, 2, 3]), torch.tensor([2, 0, 1]))]  # fmt: skip
    clip = torch.randn(2, QUERIES, CLASSES, generator=torch.Generator().manual_seed(5))
    terms = []
    for weight in (0.0, 0.3):
        loss = SetCriterion(Fixed(matches), LossWeights(regions=weight), num_points=40)
        terms.append(
            loss([replace(p, clip_logits=clip)], targets, seeded(3), [0, 1])[0].classification.detach()
        )
    expected = 0.0
    for logits, truth, match in zip(clip, targets, matches, strict=True):
        for q, j in zip(match.queries.tolist(), match.targets.tolist(), strict=True):
            expected += 0.3 * float(logits[q].logsumexp(0) - logits[q, int(truth.labels[j])]) / 5
    assert float(terms[1] - terms[0]) == pytest.approx(expected, rel=1e-4)
