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
    panoptic_pairs,
    read_coco_mini,
    segmentation,
    semantic_map,
    shifted,
)
from torchmetrics.classification import MulticlassConfusionMatrix

from odise_pl.metrics.mean_iou import MeanIoU, MeanIoUResult
from odise_pl.structures import PanopticSegmentation, Segment

VOID = -1
Pair = tuple[torch.Tensor, PanopticSegmentation | torch.Tensor]


def score(pairs: list[Pair], num_classes: int = NUM_CLASSES) -> MeanIoUResult:
    metric = MeanIoU(num_classes)
    for prediction, truth in pairs:
        metric.update([prediction], [truth])
    return metric.compute()


def confusion_result(pairs: list[Pair], num_classes: int) -> tuple[float, float, float]:
    """The usual three numbers from torchmetrics' dense confusion matrix."""
    matrix = MulticlassConfusionMatrix(num_classes, ignore_index=VOID, validate_args=False)
    for prediction, truth in pairs:
        matrix.update(prediction.flatten(), semantic_map(truth, fill=VOID).flatten())
    confusion = matrix.compute().double().numpy()
    hits, rows, columns = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    if rows.sum() == 0:
        return 0.0, 0.0, 0.0
    ious = [hits[c] / (rows[c] + columns[c] - hits[c]) for c in range(num_classes) if rows[c] > 0]
    weighted = sum(iou * share for iou, share in zip(ious, rows[rows > 0] / rows.sum(), strict=True))
    return float(np.mean(ious)), float(weighted), float(hits.sum() / rows.sum())


@settings(deadline=None, max_examples=150)
@given(st.lists(panoptic_pairs(), min_size=1, max_size=3))
def test_equals_the_confusion_matrix_on_random_maps(
    maps: list[tuple[PanopticSegmentation, PanopticSegmentation]],
) -> None:
    pairs = [(semantic_map(prediction, fill=1), truth) for prediction, truth in maps]
    result = score(pairs)
    found = (result.miou, result.frequency_weighted_iou, result.pixel_accuracy)
    assert found == pytest.approx(confusion_result(pairs, NUM_CLASSES), abs=1e-9, rel=0)
    present = {s.category for _, truth in maps for s in truth.segments if bool((truth.ids == s.id).any())}
    assert {c for c in range(NUM_CLASSES) if not result.per_class[c].isnan()} == present


def test_many_classes() -> None:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 900, (40, 60), generator=generator) * 70_001
    segments = tuple(Segment(int(i), int(i) // 70_001 % 847, False) for i in ids.unique() if i > 0)
    truth = PanopticSegmentation(ids, segments)
    prediction = semantic_map(truth)
    prediction[::3] = torch.randint(0, 847, prediction[::3].shape, generator=generator)
    result = score([(prediction, truth)], 847)
    assert result.miou == pytest.approx(confusion_result([(prediction, truth)], 847)[0], abs=1e-9)


TRUTH = segmentation(np.array([[0, 7, 7, 9]]), [Segment(7, 0, True, iscrowd=True), Segment(9, 2, False)])


def test_void_is_left_out_and_crowds_count() -> None:
    perfect = score([(torch.tensor([[4, 0, 0, 2]]), TRUTH)])
    assert (perfect.miou, perfect.frequency_weighted_iou, perfect.pixel_accuracy) == (1.0, 1.0, 1.0)
    assert perfect.num_classes == 2
    half = score([(torch.tensor([[0, 0, 1, 2]]), TRUTH)])
    assert half.per_class[[0, 2]].tolist() == [0.5, 1.0]
    assert half.per_class[1].isnan(), "a class that is only predicted has no IoU"


def test_which_classes_count() -> None:
    """Class 0 is found by half, 1 is missed, 2 is only predicted, 3 and 4 occur nowhere."""
    result = score([(torch.tensor([[0, 2, 2, 2]]), torch.tensor([[0, 0, 1, VOID]]))])
    assert result.per_class[:2].tolist() == [0.5, 0.0]
    assert result.per_class[2:].isnan().all()
    assert (result.miou, result.num_classes) == (0.25, 2)
    assert (result.miou_published, result.num_only_predicted) == (pytest.approx(0.5 / 3), 1)
    elsewhere = score([(torch.tensor([[0, 0, 1, 3]]), torch.tensor([[0, 0, 1, VOID]]))])
    assert (elsewhere.miou, elsewhere.miou_published) == (1.0, 1.0), "void does not count"


def test_nothing_labelled_is_zero() -> None:
    blank = segmentation(np.zeros((2, 2), dtype=np.int64), [])
    result = score([(torch.ones(2, 2, dtype=torch.int64), blank)])
    assert (result.miou, result.frequency_weighted_iou, result.pixel_accuracy) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), TRUTH, r"image 17 has size \(2, 4\), its truth \(1, 4\)"),
        (torch.zeros(1, 4), TRUTH, "prediction of image 17: the map must be integer"),
        (torch.full((1, 4), 5), TRUTH, r"image 17.*class 5, not in 0\.\.4"),
        (torch.zeros(1, 4, dtype=torch.int64), replace(TRUTH, segments=()), "unlisted segment id 7"),
    ],
)
def test_bad_input_is_named(prediction: torch.Tensor, truth: PanopticSegmentation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanIoU(NUM_CLASSES).update([prediction], [truth], [17])


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        MeanIoU(0)


def test_real_maps() -> None:
    coco = read_coco_mini(8)
    truths = list(coco.truths.values())
    assert score([(semantic_map(t), t) for t in truths], len(coco.isthing)).miou == 1.0
    moved = [(semantic_map(shifted(t)), t) for t in truths]
    result = score(moved, len(coco.isthing))
    found = (result.miou, result.frequency_weighted_iou, result.pixel_accuracy)
    assert found == pytest.approx(confusion_result(moved, len(coco.isthing)), abs=1e-9, rel=0)
    assert len(ISTHING) < result.num_classes <= 133


@settings(deadline=None, max_examples=50)
@given(st.lists(panoptic_pairs(), min_size=1, max_size=3))
def test_a_class_map_as_truth_gives_the_same(
    maps: list[tuple[PanopticSegmentation, PanopticSegmentation]],
) -> None:
    pairs = [(semantic_map(prediction, fill=1), truth) for prediction, truth in maps]
    metric = MeanIoU(NUM_CLASSES)
    metric.update([p for p, _ in pairs], [semantic_map(t, fill=VOID) for _, t in pairs])
    found, expected = metric.compute(), score(pairs)
    assert found.miou == expected.miou
    torch.testing.assert_close(found.per_class, expected.per_class, equal_nan=True)


def test_no_class_is_wrong_everywhere_and_of_no_class() -> None:
    truth = torch.tensor([[0, 0, 1, -1]])
    metric = MeanIoU(3)
    metric.update([torch.tensor([[0, -1, -1, -1]])], [truth])
    result = metric.compute()
    assert result.per_class[:2].tolist() == [0.5, 0.0]
    assert result.pixel_accuracy == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"the truth of .*class 3, not in 0\.\.2"):
        metric.update([torch.zeros(1, 1, dtype=torch.int64)], [torch.tensor([[3]])])
