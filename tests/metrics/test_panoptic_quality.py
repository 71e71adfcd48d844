from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hotcoco.panoptic import PanopticEval
from panoptic_maps import (
    ISTHING,
    NUM_CLASSES,
    random_pair,
    read_coco_mini,
    segmentation,
    shifted,
)
from PIL import Image

from odise_pl.metrics.panoptic_matching import match
from odise_pl.metrics.panoptic_quality import PanopticQuality, PanopticQualityResult
from odise_pl.structures import PanopticSegmentation, Segment

Pair = tuple[PanopticSegmentation, PanopticSegmentation]


def score(pairs: list[Pair], isthing: tuple[bool, ...] = ISTHING) -> PanopticQualityResult:
    metric = PanopticQuality(isthing)
    for prediction, truth in pairs:
        metric.update(prediction, truth)
    assert float(metric.compute()["pq"]) == metric.result.all.pq
    return metric.result


@pytest.mark.parametrize("seed", range(10))
def test_truth_against_itself_is_perfect(seed: int) -> None:
    _, truth = random_pair(np.random.default_rng(seed))
    prediction = replace(truth, segments=tuple(replace(s, iscrowd=False) for s in truth.segments))
    result = score([(prediction, truth)])
    scored = {s.category for s in truth.segments if not s.iscrowd}
    assert result.stats.fn.sum() == 0
    assert {c for c in range(NUM_CLASSES) if result.stats.tp[c] > 0} == scored
    assert all(result.pq[c] == 1.0 for c in scored if result.stats.fp[c] == 0)


def write_coco(folder: Path, maps: list[PanopticSegmentation], isthing: tuple[bool, ...]) -> Path:
    """Write COCO's panoptic JSON and a folder of PNGs beside it."""
    folder.mkdir()
    annotations = []
    for number, panoptic in enumerate(maps):
        ids = panoptic.ids.numpy()
        rgb = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{number}.png")
        segments = [
            {
                "id": s.id,
                "category_id": s.category,
                "iscrowd": int(s.iscrowd),
                "area": int((ids == s.id).sum()),
            }
            for s in panoptic.segments
        ]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    content = {
        "images": [{"id": n, "height": m.ids.shape[0], "width": m.ids.shape[1]} for n, m in enumerate(maps)],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c), "isthing": int(thing)} for c, thing in enumerate(isthing)],
    }
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(content))
    return path


def assert_equals_hotcoco(pairs: list[Pair], isthing: tuple[bool, ...], folder: Path) -> None:
    """hotcoco is an independent implementation of COCO's script."""
    result = score(pairs, isthing)
    predictions = write_coco(folder / "predictions", [p for p, _ in pairs], isthing)
    truths = write_coco(folder / "truths", [t for _, t in pairs], isthing)
    evaluation = PanopticEval(truths, predictions)
    evaluation.evaluate()
    expected = evaluation.results()
    for name, part in (("All", result.all), ("Things", result.things), ("Stuff", result.stuff)):
        found = {"pq": part.pq, "sq": part.sq, "rq": part.rq, "n": part.num_classes}
        assert found == pytest.approx({key: expected[name][key] for key in found}, abs=1e-9, rel=0)


@pytest.mark.parametrize("seed", range(2))
def test_equals_hotcoco_on_random_maps(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    assert_equals_hotcoco([random_pair(rng) for _ in range(30)], ISTHING, tmp_path)


def test_equals_hotcoco_on_real_maps(tmp_path: Path) -> None:
    coco = read_coco_mini(24)
    truths = list(coco.truths.values())
    unmoved = [(shifted(t, 0, 0), t) for t in truths if not any(s.iscrowd for s in t.segments)]
    perfect = score(unmoved, coco.isthing)
    assert perfect.all.pq == perfect.things.sq == perfect.stuff.rq == 1.0
    moved = [(shifted(truth), truth) for truth in truths]
    assert 0.2 < score(moved, coco.isthing).all.pq < 0.9
    assert_equals_hotcoco(moved, coco.isthing, tmp_path)


def test_unmatched_segments_on_void_or_crowds_are_ignored() -> None:
    truth = segmentation(
        np.array([[0, 0, 0, 7, 7, 7, 5, 5, 5, 5]]), [Segment(7, 0, True, iscrowd=True), Segment(5, 2, False)]
    )
    ids = np.full((1, 10), 3)
    excused = match(segmentation(ids, [Segment(3, 0, True)]), truth, 3)
    assert (excused.fp.tolist(), excused.fn.tolist()) == ([0, 0, 0], [0, 0, 1])
    charged = match(segmentation(ids, [Segment(3, 1, True)]), truth, 3)
    assert charged.fp.tolist() == [0, 1, 0], "void covers only three tenths"


def test_void_does_not_count_towards_the_union() -> None:
    truth = segmentation(np.array([[0, 0, 0, 0, 9, 9, 9, 8]]), [Segment(9, 0, True), Segment(8, 1, False)])
    prediction = segmentation(
        np.array([[2, 2, 2, 2, 2, 2, 1, 1]]), [Segment(2, 0, True), Segment(1, 1, False)]
    )
    stats = match(prediction, truth, 2)
    assert stats.tp.tolist() == [1, 0]
    assert stats.iou_sum.tolist() == pytest.approx([2 / 3, 0.0], abs=1e-11)


def test_iou_of_exactly_half_does_not_match() -> None:
    truth = segmentation(np.array([[4, 4]]), [Segment(4, 0, True)])
    prediction = segmentation(np.array([[4, 6]]), [Segment(4, 0, True), Segment(6, 1, True)])
    stats = match(prediction, truth, 2)
    assert (stats.tp.tolist(), stats.fp.tolist(), stats.fn.tolist()) == ([0, 0], [1, 1], [1, 0])


def test_last_listed_crowd_of_a_class_counts() -> None:
    first, last = Segment(1, 0, True, iscrowd=True), Segment(2, 0, True, iscrowd=True)
    ids = np.array([[1, 1, 1, 2]])
    prediction = segmentation(np.array([[9, 9, 9, 9]]), [Segment(9, 0, True)])
    assert match(prediction, segmentation(ids, [first, last]), 1).fp.tolist() == [1]
    assert match(prediction, segmentation(ids, [last, first]), 1).fp.tolist() == [0]


def test_true_segments_without_pixels_are_missed() -> None:
    truth = segmentation(np.array([[4, 4]]), [Segment(4, 0, True), Segment(5, 1, True)])
    prediction = segmentation(np.array([[4, 4]]), [Segment(4, 0, True)])
    assert match(prediction, truth, 2).fn.tolist() == [0, 1]
    result = score([(segmentation(np.zeros((1, 2), dtype=np.int64), []), truth)])
    assert (result.all.pq, result.all.num_classes) == (0.0, 2)
    assert result.pq.isnan().tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_types_and_strides_may_differ(dtype: torch.dtype) -> None:
    ids = torch.tensor([[1, 1, 2, 0], [1, 2, 2, 2]])
    segments = (Segment(1, 0, True), Segment(2, 2, False))
    prediction = PanopticSegmentation(ids.to(dtype).t(), segments)
    assert match(prediction, PanopticSegmentation(ids.t(), segments), 3).tp.tolist() == [1, 0, 1]


GOOD = segmentation(np.array([[4, 4, 0]]), [Segment(4, 0, True)])


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (replace(GOOD, segments=()), GOOD, "prediction of image 17.*segment id 4"),
        (GOOD, replace(GOOD, segments=()), "truth of image 17.*segment id 4"),
        (replace(GOOD, segments=(*GOOD.segments, Segment(6, 1, True))), GOOD, "image 17.* id 6"),
        (replace(GOOD, segments=GOOD.segments * 2), GOOD, "segment id 4"),
        (GOOD, replace(GOOD, segments=(*GOOD.segments, Segment(0, 1, True))), "segment id 0"),
        (replace(GOOD, segments=(Segment(4, 3, True),)), GOOD, r"category 3"),
        (replace(GOOD, ids=GOOD.ids[:, :2]), GOOD, r"image 17 .*\(1, 2\).*\(1, 3\)"),
        (replace(GOOD, ids=GOOD.ids.float()), GOOD, "prediction of image 17.*float32"),
        (GOOD, replace(GOOD, ids=GOOD.ids[0]), r"truth of image 17.*\[H, W\]"),
        (replace(GOOD, ids=-GOOD.ids), GOOD, "segment id -4"),
    ],
)
def test_invalid_maps_raise_an_error(
    prediction: PanopticSegmentation, truth: PanopticSegmentation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        match(prediction, truth, 3, "image 17")
