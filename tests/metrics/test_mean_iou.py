from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from panoptic_maps import NUM_CLASSES, random_pair, segmentation, semantic_map
from torchmetrics.functional.classification import multiclass_confusion_matrix

from odise_pl.metrics.mean_iou import MeanIoUResult, count_class_pixels, mean_iou
from odise_pl.structures import PanopticSegmentation, Segment

VOID = -1
Pair = tuple[torch.Tensor, PanopticSegmentation | torch.Tensor]


def score(pairs: list[Pair]) -> MeanIoUResult:
    return mean_iou(sum(count_class_pixels(prediction, truth, NUM_CLASSES) for prediction, truth in pairs))


@pytest.mark.parametrize("seed", range(3))
def test_equals_confusion_matrix_on_random_maps(seed: int) -> None:
    """The usual three numbers from torchmetrics' dense confusion matrix."""
    rng = np.random.default_rng(seed)
    maps = [random_pair(rng) for _ in range(5)]
    pairs: list[Pair] = [(semantic_map(prediction, fill=1), truth) for prediction, truth in maps]
    class_maps = [(semantic_map(p, fill=1), semantic_map(t, fill=VOID)) for p, t in maps]
    matrix = sum(
        multiclass_confusion_matrix(p.flatten(), t.flatten(), NUM_CLASSES, ignore_index=VOID)
        for p, t in class_maps
    )
    hits, rows, columns = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    ious = {c: float(hits[c] / (rows[c] + columns[c] - hits[c])) for c in range(NUM_CLASSES) if rows[c] > 0}
    weighted = sum(iou * int(rows[c]) / int(rows.sum()) for c, iou in ious.items())
    expected = (sum(ious.values()) / len(ious), weighted, int(hits.sum()) / int(rows.sum()))
    for result in (score(pairs), score([*class_maps])):
        found = (result.miou, result.frequency_weighted_iou, result.pixel_accuracy)
        assert found == pytest.approx(expected, abs=1e-6, rel=0)  # theirs is float32
        assert {c for c in range(NUM_CLASSES) if not result.per_class[c].isnan()} == set(ious)


TRUTH = segmentation(np.array([[0, 7, 7, 9]]), [Segment(7, 0, True, iscrowd=True), Segment(9, 2, False)])


def test_void_is_ignored_and_crowds_count() -> None:
    perfect = score([(torch.tensor([[4, 0, 0, 2]]), TRUTH)])
    assert (perfect.miou, perfect.frequency_weighted_iou, perfect.pixel_accuracy) == (1.0, 1.0, 1.0)
    assert perfect.classes == 2


def test_mean_is_over_classes_in_the_truth() -> None:
    """Class 0 is half found, 1 missed, 2 only predicted, 3 and 4 absent."""
    result = score([(torch.tensor([[0, 2, 2, 2]]), torch.tensor([[0, 0, 1, VOID]]))])
    assert result.per_class[:2].tolist() == [0.5, 0.0]
    assert result.per_class[2:].isnan().all()
    assert (result.miou, result.classes) == (0.25, 2)
    assert (result.miou_published, result.only_predicted) == (pytest.approx(0.5 / 3), 1)
    elsewhere = score([(torch.tensor([[0, 0, 1, 3]]), torch.tensor([[0, 0, 1, VOID]]))])
    assert (elsewhere.miou, elsewhere.miou_published) == (1.0, 1.0), "void does not count"


def test_no_class_is_always_wrong() -> None:
    result = score([(torch.tensor([[0, -1, -1, -1]]), torch.tensor([[0, 0, 1, VOID]]))])
    assert result.per_class[:2].tolist() == [0.5, 0.0]
    assert result.pixel_accuracy == pytest.approx(1 / 3)


ZEROS = torch.zeros(1, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), TRUTH, r"\(2, 4\).*\(1, 4\)"),
        (torch.full((1, 4), 5), TRUTH, "prediction .*5"),
        (ZEROS, torch.tensor([[0, 0, 0, 5]]), "truth .*5"),
        (ZEROS, replace(TRUTH, segments=()), "truth .*7"),
    ],
)
def test_invalid_maps_raise_an_error(
    prediction: torch.Tensor, truth: PanopticSegmentation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        count_class_pixels(prediction, truth, NUM_CLASSES)
