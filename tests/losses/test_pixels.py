from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from odise_pl.losses.criterion import LossWeights
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.losses.pixels import (
    IGNORED,
    FeatureCriterion,
    PixelCriterion,
    feature_distance,
    label_map,
)
from odise_pl.structures import MaskPredictions, Targets

SIZE, CELLS, CLASSES = (12, 16), (3, 4), 5


def criterion() -> PixelCriterion:
    return PixelCriterion(HungarianMatcher(1.0, 1.0, 1.0, 4), LossWeights(classification=3.0))


def predictions() -> MaskPredictions:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CELLS[0] * CELLS[1], CLASSES, generator=random, requires_grad=True)
    return MaskPredictions(logits, logits.new_zeros(2, 0, *CELLS), logits, torch.ones(()))


def targets() -> list[Targets]:
    """Two segments in the first image, none in the second."""
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, :5, :7], masks[1, 6:, 3:9] = True, True
    return [Targets(torch.tensor([4, 1]), masks), Targets(torch.zeros(0, dtype=torch.int64), masks[:0])]


def test_loss_equals_loop_over_labelled_pixels() -> None:
    output, given = predictions(), targets()
    (loss,) = criterion()([output], given, torch.rand, [1, 2])
    terms = []
    for logits, target in zip(output.class_logits, given, strict=True):
        full = F.interpolate(logits.T.view(1, CLASSES, *CELLS), SIZE, mode="bilinear")[0]
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                for label, mask in zip(target.labels, target.masks, strict=True):
                    if mask[y, x]:
                        terms.append(full[:, y, x].logsumexp(0) - full[label, y, x])
    torch.testing.assert_close(loss.classification, 3 * torch.stack(terms).mean())
    assert loss.mask == loss.dice == 0


def test_pixels_without_a_segment_are_ignored() -> None:
    labels = label_map(targets()[0])
    assert labels[0, 0] == 4
    assert labels[7, 4] == 1
    assert (labels == IGNORED).sum() == SIZE[0] * SIZE[1] - 35 - 36


def test_images_without_labels_do_not_count() -> None:
    output = predictions()
    (both,) = criterion()([output], targets(), torch.rand, [1, 2], [True, False])
    alone = replace(output, class_logits=output.class_logits[:1], mask_logits=output.mask_logits[:1])
    (first,) = criterion()([alone], targets()[:1], torch.rand, [1])
    torch.testing.assert_close(both.classification, first.classification)
    (none,) = criterion()([output], targets(), torch.rand, [1, 2], [False, False])
    none.classification.backward()
    assert none.classification == 0
    assert (output.class_logits.grad == 0).all()


def test_distance_of_features_equals_double_sum() -> None:
    random = torch.Generator().manual_seed(0)
    real, made = torch.randn(4, 3, generator=random), 2 * torch.randn(4, 3, generator=random)
    points = [(-0.25, x) for x in real] + [(0.25, x) for x in made]
    total = sum(
        a * b * torch.exp(-(u - v).square().sum() / (2 * s))
        for s in (2, 5, 10, 20, 40, 80)
        for a, u in points
        for b, v in points
    )
    torch.testing.assert_close(feature_distance(real, made), total.sqrt())
    assert feature_distance(real, real) < 1e-3


def test_generated_features_are_compared_with_those_of_their_class() -> None:
    """Features of a cell are its class, so that only drawing and labels decide what is compared."""
    output, given = predictions(), targets()
    labels = label_map(given[0])[2::4, 2::4].flatten()  # the pixel at the centre of each cell
    features = torch.zeros(2, 12, 2)
    features[0, :, 0] = labels.float()
    made = torch.stack([torch.full((6, 2), float(k)) for k in range(CLASSES)]).requires_grad_()
    output = replace(output, mask_embed=features, generated=made)
    (loss,) = FeatureCriterion(criterion().matcher, LossWeights(classification=2.0))(
        [output], given, torch.rand, [1, 2]
    )
    expected = [feature_distance(torch.tensor([[k, 0.0]]).expand(6, 2), made[k]) for k in (1, 4)]
    torch.testing.assert_close(loss.classification, 2 * torch.stack(expected).mean())
    loss.classification.backward()
    assert made.grad is not None
    assert made.grad.abs().sum((1, 2)).gt(0).tolist() == [False, True, False, False, True]
