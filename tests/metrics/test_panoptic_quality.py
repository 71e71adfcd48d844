from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from panoptic_maps import (
    ISTHING,
    NUM_CLASSES,
    SlowPanopticQuality,
    panoptic_pairs,
    read_coco_mini,
    segmentation,
    shifted,
)
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from odise_pl.metrics.panoptic_quality import PanopticQuality, PanopticQualityResult, match
from odise_pl.structures import PanopticSegmentation, Segment

STUFF = {c for c, thing in enumerate(ISTHING) if not thing}
Pair = tuple[PanopticSegmentation, PanopticSegmentation]


def score(pairs: list[Pair], isthing: tuple[bool, ...] = ISTHING) -> PanopticQualityResult:
    metric = PanopticQuality(isthing)
    for prediction, truth in pairs:
        metric.update([prediction], [truth])
    return metric.compute()


def assert_equals_slow(result: PanopticQualityResult, pairs: list[Pair], isthing: tuple[bool, ...]) -> None:
    slow = SlowPanopticQuality()
    for prediction, truth in pairs:
        slow.add(prediction, truth)
    things = {c for c, thing in enumerate(isthing) if thing}
    stuff = set(range(len(isthing))) - things
    for part, classes in ((result.all, things | stuff), (result.things, things), (result.stuff, stuff)):
        expected = slow.qualities(classes)
        assert (part.pq, part.sq, part.rq) == pytest.approx(expected[:3], abs=1e-9, rel=0)
        assert part.num_classes == expected[3]
    for label in range(len(isthing)):
        counts = slow.counts[label]
        found = (result.stats.tp[label], result.stats.fp[label], result.stats.fn[label])
        assert tuple(map(int, found)) == (counts.tp, counts.fp, counts.fn)
        assert float(result.stats.iou_sum[label]) == pytest.approx(counts.iou, abs=1e-9)


@settings(deadline=None, max_examples=300)
@given(st.lists(panoptic_pairs(), min_size=1, max_size=4))
def test_equals_the_literal_definition_on_random_maps(pairs: list[Pair]) -> None:
    assert_equals_slow(score(pairs), pairs, ISTHING)


@settings(deadline=None, max_examples=100)
@given(panoptic_pairs())
def test_truth_against_itself_is_perfect(pair: Pair) -> None:
    truth = pair[1]
    prediction = replace(truth, segments=tuple(replace(s, iscrowd=False) for s in truth.segments))
    result = score([(prediction, truth)])
    scored = {s.category for s in truth.segments if not s.iscrowd}
    assert result.stats.fn.sum() == 0
    assert {c for c in range(NUM_CLASSES) if result.stats.tp[c] > 0} == scored
    assert all(result.pq[c] == 1.0 for c in scored if result.stats.fp[c] == 0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_equals_torchmetrics_without_crowd_and_void(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = (_blocky_map(rng) for _ in range(2))
    if seed % 2:
        keep = rng.random(truth.shape[:2]) < 0.9
        prediction[keep] = truth[keep]
    theirs = TorchmetricsPanopticQuality(
        things={0, 1, 4}, stuffs={2, 3}, return_per_class=False, return_sq_and_rq=True
    )
    theirs.update(torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None])
    ours = score([(_from_category_instance(prediction), _from_category_instance(truth))])
    expected = theirs.compute().tolist()
    assert [ours.all.pq, ours.all.sq, ours.all.rq] == pytest.approx(expected, abs=1e-6)  # theirs is float32


def _blocky_map(rng: np.random.Generator) -> np.ndarray:
    """[H, W, 2] of class and instance without void; stuff has one instance, as torchmetrics assumes."""
    classes = np.kron(rng.integers(0, NUM_CLASSES, (3, 4)), np.ones((4, 4), dtype=np.int64))
    instances = np.kron(rng.integers(0, 3, (3, 4)), np.ones((4, 4), dtype=np.int64))
    instances[np.isin(classes, list(STUFF))] = 0
    return np.stack([classes, instances], axis=-1)


def _from_category_instance(labels: np.ndarray) -> PanopticSegmentation:
    ids = 1 + labels[..., 0] * 70_000 + labels[..., 1]
    segments = [Segment(int(i), int(i - 1) // 70_000, ISTHING[(i - 1) // 70_000]) for i in np.unique(ids)]
    return segmentation(ids, segments)


def test_an_unmatched_segment_on_void_or_the_crowd_of_its_class_is_no_error() -> None:
    truth = segmentation(
        np.array([[0, 0, 0, 7, 7, 7, 5, 5, 5, 5]]), [Segment(7, 0, True, iscrowd=True), Segment(5, 2, False)]
    )
    ids = np.full((1, 10), 3)
    excused = match(segmentation(ids, [Segment(3, 0, True)]), truth, 3)
    assert (excused.fp.tolist(), excused.fn.tolist()) == ([0, 0, 0], [0, 0, 1])
    charged = match(segmentation(ids, [Segment(3, 1, True)]), truth, 3)
    assert charged.fp.tolist() == [0, 1, 0], "only void, three tenths, speaks for class 1"


def test_void_does_not_count_towards_the_union() -> None:
    truth = segmentation(np.array([[0, 0, 0, 0, 9, 9, 9, 8]]), [Segment(9, 0, True), Segment(8, 1, False)])
    prediction = segmentation(
        np.array([[2, 2, 2, 2, 2, 2, 1, 1]]), [Segment(2, 0, True), Segment(1, 1, False)]
    )
    stats = match(prediction, truth, 2)
    assert stats.tp.tolist() == [1, 0]
    assert stats.iou_sum.tolist() == pytest.approx([2 / 3, 0.0], abs=1e-11)


def test_exactly_half_an_iou_is_no_match() -> None:
    truth = segmentation(np.array([[4, 4]]), [Segment(4, 0, True)])
    prediction = segmentation(np.array([[4, 6]]), [Segment(4, 0, True), Segment(6, 1, True)])
    stats = match(prediction, truth, 2)
    assert (stats.tp.tolist(), stats.fp.tolist(), stats.fn.tolist()) == ([0, 0], [1, 1], [1, 0])


def test_of_several_crowds_of_a_class_the_last_listed_counts() -> None:
    first, last = Segment(1, 0, True, iscrowd=True), Segment(2, 0, True, iscrowd=True)
    ids = np.array([[1, 1, 1, 2]])
    prediction = segmentation(np.array([[9, 9, 9, 9]]), [Segment(9, 0, True)])
    assert match(prediction, segmentation(ids, [first, last]), 1).fp.tolist() == [1]
    assert match(prediction, segmentation(ids, [last, first]), 1).fp.tolist() == [0]


def test_an_empty_prediction_scores_zero_and_nothing_at_all_does_too() -> None:
    truth = segmentation(np.array([[4, 4]]), [Segment(4, 0, True)])
    result = score([(segmentation(np.zeros((1, 2), dtype=np.int64), []), truth)])
    assert (result.all.pq, result.all.num_classes, result.num_images) == (0.0, 1, 1)
    assert result.pq.isnan().tolist() == [False, True, True, True, True]
    nothing = PanopticQuality(ISTHING)
    nothing.update([], [])
    assert nothing.compute().all.pq == 0.0
    assert nothing.compute().all.num_classes == 0


def test_a_true_segment_without_pixels_is_missed() -> None:
    truth = segmentation(np.array([[4, 4]]), [Segment(4, 0, True), Segment(5, 1, True)])
    prediction = segmentation(np.array([[4, 4]]), [Segment(4, 0, True)])
    assert match(prediction, truth, 2).fn.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_types_mix(dtype: torch.dtype) -> None:
    ids = torch.tensor([[1, 1, 2, 0]])
    segments = (Segment(1, 0, True), Segment(2, 2, False))
    stats = match(PanopticSegmentation(ids.to(dtype), segments), PanopticSegmentation(ids, segments), 3)
    assert stats.tp.tolist() == [1, 0, 1]


def test_views_that_are_not_contiguous_are_read_right() -> None:
    ids = torch.arange(12).reshape(3, 4) // 5 + 1
    segments = tuple(Segment(i, 0, True) for i in (1, 2, 3))
    transposed = PanopticSegmentation(ids.t(), segments)
    assert match(transposed, PanopticSegmentation(ids.t().contiguous(), segments), 1).tp.tolist() == [3]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_forgets_and_images_add_up() -> None:
    truth = segmentation(np.array([[4, 4]]), [Segment(4, 0, True)])
    metric = PanopticQuality((True,))
    metric.update([truth, truth], [truth, truth], [1, 2])
    assert metric.compute().stats.tp.tolist() == [2]
    metric.reset()
    assert metric.compute().num_images == 0


GOOD = segmentation(np.array([[4, 4, 0]]), [Segment(4, 0, True)])


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (replace(GOOD, segments=()), GOOD, "prediction of image 17.*segment id 4"),
        (GOOD, replace(GOOD, segments=()), "truth of image 17.*segment id 4"),
        (replace(GOOD, segments=(*GOOD.segments, Segment(6, 1, True))), GOOD, "image 17.*lists? id 6"),
        (replace(GOOD, segments=GOOD.segments * 2), GOOD, "segment id 4 is listed more than once"),
        (GOOD, replace(GOOD, segments=(*GOOD.segments, Segment(0, 1, True))), "segment id 0 is that of void"),
        (replace(GOOD, segments=(Segment(4, 3, True),)), GOOD, r"category 3.*3 classes \(0..2\)"),
        (replace(GOOD, ids=GOOD.ids[:, :2]), GOOD, r"image 17 has size \(1, 2\), its truth \(1, 3\)"),
        (replace(GOOD, ids=GOOD.ids.float()), GOOD, "prediction of image 17.*integer.*float32"),
        (GOOD, replace(GOOD, ids=GOOD.ids[0]), r"truth of image 17.*\[H, W\]"),
        (replace(GOOD, ids=-GOOD.ids), GOOD, "segment id -4"),
    ],
)
def test_bad_input_is_named(
    prediction: PanopticSegmentation, truth: PanopticSegmentation, message: str
) -> None:
    metric = PanopticQuality((True, True, True))
    with pytest.raises(ValueError, match=message):
        metric.update([prediction], [truth], [17])


def test_uneven_batches_and_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions, 1 truths"):
        PanopticQuality((True,)).update([GOOD, GOOD], [GOOD])
    with pytest.raises(ValueError, match="1 truths and 2 image ids"):
        PanopticQuality((True,)).update([GOOD], [GOOD], [1, 2])
    with pytest.raises(ValueError, match="at least one class"):
        PanopticQuality(())


def test_real_maps_perfect_and_shifted() -> None:
    coco = read_coco_mini(24)
    truths = list(coco.truths.values())
    perfect = score(
        [(shifted(t, 0, 0), t) for t in truths if not any(s.iscrowd for s in t.segments)], coco.isthing
    )
    assert perfect.all.pq == perfect.things.sq == perfect.stuff.rq == 1.0
    moved = [(shifted(truth), truth) for truth in truths]
    result = score(moved, coco.isthing)
    assert 0.2 < result.all.pq < 0.9
    assert_equals_slow(result, moved, coco.isthing)
