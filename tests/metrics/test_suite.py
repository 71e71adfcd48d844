from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from panoptic_maps import ISTHING, empty, perfect, random_pair, segmentation

from odise_pl.metrics.report import as_dict
from odise_pl.metrics.suite import SegmentationMetrics
from odise_pl.structures import Instances, PanopticSegmentation, Prediction, Segment, TrueInstances, Truth

NAMES = ("cat", "dog", "grass", "sky", "cow")


def scene(seed: int) -> tuple[Prediction, PanopticSegmentation]:
    """Truth with crowds and void, and a noisy prediction of it."""
    rng = np.random.default_rng(seed)
    found, truth = random_pair(rng)
    prediction = perfect(Truth(found))
    prediction.instances.scores[:] = torch.from_numpy(rng.random(len(prediction.instances.scores)))
    return prediction, truth


def counted(seeds: Sequence[int]) -> SegmentationMetrics:
    metrics = SegmentationMetrics(ISTHING, NAMES)
    for seed in seeds:
        prediction, truth = scene(seed)
        metrics.update([prediction], [Truth(truth)], [100 + seed])
    return metrics


@pytest.mark.parametrize("shares", [((4, 0, 5, 2, 1), (3, 6)), ((), (6, 5, 4, 3, 2, 1, 0))])
def test_sum_of_shares_equals_the_whole(shares: Sequence[Sequence[int]]) -> None:
    """To the last digit, also when the counts were written to files; see the evaluation for several ranks."""
    whole, joined = counted(range(7)), counted([9])
    joined.skip(3)
    joined.reset()
    for share in shares:
        joined.add(json.loads(json.dumps(counted(share).state())))
    expected, found = (as_dict(metrics.compute(), "scenes") for metrics in (whole, joined))
    assert 0 < expected["panoptic"]["all"]["pq"] < 1
    assert 0 < expected["instances"]["ap"] < 1
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize("seen", [(True, False, True, False, True), (False, False, True, True, True)])
def test_harmonic_mean_of_base_and_novel_miou_equals_loops_over_pixels(seen: Sequence[bool]) -> None:
    metrics, hits, unions = SegmentationMetrics(ISTHING, NAMES, seen), [0] * 5, [0] * 5
    for seed in range(6):
        prediction, truth = scene(seed)
        metrics.update([prediction], [Truth(truth)], [seed])
        category = {segment.id: segment.category for segment in truth.segments}
        for guess, true in zip(
            prediction.semantic.flatten().tolist(), truth.ids.flatten().tolist(), strict=True
        ):
            for k in range(5) if true else ():  # void pixels are ignored
                hits[k] += guess == k == category[true]
                unions[k] += k in (guess, category[true])
    groups, means = metrics.compute().groups(), {}
    for name, wanted in (("base", True), ("novel", False)):
        ious = [hits[k] / unions[k] for k in range(5) if seen[k] is wanted]
        means[name] = sum(ious) / len(ious)
        assert groups[name]["miou"] == pytest.approx(means[name])
    s, u = means.values()
    assert groups["harmonic"]["miou"] == pytest.approx(2 * s * u / (s + u))
    assert metrics.compute().scalars()["miou_harmonic"] == groups["harmonic"]["miou"]


def test_harmonic_mean_without_any_hit_is_zero() -> None:
    truth = scene(0)[1]
    metrics = SegmentationMetrics(ISTHING, NAMES, (True, False, True, False, True))
    metrics.update([empty(truth)], [Truth(truth)], [1])
    assert metrics.compute().groups()["harmonic"]["miou"] == 0


def test_image_ids_must_be_unique() -> None:
    prediction, truth = scene(0)
    metrics = SegmentationMetrics(ISTHING, NAMES)
    metrics.update([prediction] * 2, [Truth(truth)] * 2, [3, 4])
    metrics.update([prediction], [Truth(truth)], [4])
    with pytest.raises(ValueError, match="image 4 "):
        metrics.compute()


def test_empty_predictions_and_empty_truths_score_zero() -> None:
    truths = [scene(seed)[1] for seed in range(4)]
    blank = segmentation(np.zeros((3, 4), dtype=np.int64), [])
    for some in (truths, [blank]):
        metrics = SegmentationMetrics(ISTHING, NAMES)
        metrics.update([empty(truth) for truth in some], [Truth(truth) for truth in some], range(len(some)))
        assert set(metrics.compute().scalars().values()) == {0.0}


def test_annotated_objects_and_semantic_maps_replace_the_panoptic_map() -> None:
    """Two objects overlap, and the class map differs from the segments."""
    truth = segmentation(np.array([[5, 5, 5, 0, 9, 9]]), [Segment(5, 0, True), Segment(9, 2, False)])
    masks = torch.tensor([[[1, 1, 1, 1, 0, 0]], [[1, 1, 1, 0, 0, 0]]], dtype=torch.bool)
    labels = torch.tensor([0, 1])
    areas = torch.tensor([4.0, 3.0], dtype=torch.float64)
    objects = TrueInstances(labels, masks, torch.zeros(2, dtype=torch.bool), areas)
    semantic = torch.tensor([[0, 0, 1, -1, 2, 2]])
    prediction = Prediction(truth, Instances(labels, torch.ones(2), masks), semantic)
    metrics = SegmentationMetrics(ISTHING, NAMES)
    metrics.update([prediction], [Truth(truth, objects, semantic)], [1])
    result = metrics.compute()
    assert result.instances is not None
    assert result.instances.num_annotated == 1
    assert set(result.scalars().values()) == {1.0}
    metrics = SegmentationMetrics(ISTHING, NAMES)
    metrics.update([prediction], [Truth(truth)], [1])
    scalars = metrics.compute().scalars()
    assert (scalars["pq"], scalars["map"] < 1, scalars["miou"] < 1) == (1.0, True, True)
