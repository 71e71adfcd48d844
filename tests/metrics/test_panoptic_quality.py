from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hotcoco.panoptic import PanopticEval
from panoptic_maps import ISTHING, random_pair, segmentation

from odise_pl.data.label_maps import encode_ids
from odise_pl.metrics.panoptic_quality import (
    IOU_BITS,
    PanopticQuality,
    PanopticQualityResult,
    count_matches,
    panoptic_quality,
)
from odise_pl.structures import PanopticSegmentation, Segment

Pair = tuple[PanopticSegmentation, PanopticSegmentation]


def score(pairs: list[Pair]) -> PanopticQualityResult:
    return panoptic_quality(sum(count_matches(*pair, len(ISTHING)) for pair in pairs), ISTHING)


def write_coco(folder: Path, maps: list[PanopticSegmentation]) -> Path:
    """Write COCO's panoptic JSON and a folder of PNGs beside it."""
    folder.mkdir()
    annotations = []
    for number, panoptic in enumerate(maps):
        ids = panoptic.ids.numpy()
        (folder / f"{number}.png").write_bytes(encode_ids(ids))
        kept = [(s.id, s.category, int(s.iscrowd), int((ids == s.id).sum())) for s in panoptic.segments]
        segments = [dict(zip(("id", "category_id", "iscrowd", "area"), row, strict=True)) for row in kept]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    content = {
        "images": [{"id": n, "height": m.ids.shape[0], "width": m.ids.shape[1]} for n, m in enumerate(maps)],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c), "isthing": int(thing)} for c, thing in enumerate(ISTHING)],
    }
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("seed", range(2))
def test_equals_hotcoco_on_random_maps(seed: int, tmp_path: Path) -> None:
    """hotcoco is an independent implementation of COCO's script."""
    rng = np.random.default_rng(seed)
    pairs = [random_pair(rng) for _ in range(30)]
    result = score(pairs)
    predictions = write_coco(tmp_path / "predictions", [p for p, _ in pairs])
    truths = write_coco(tmp_path / "truths", [t for _, t in pairs])
    evaluation = PanopticEval(truths, predictions)
    evaluation.evaluate()
    expected = evaluation.results()
    for name, part in (("All", result.all), ("Things", result.things), ("Stuff", result.stuff)):
        found = {"pq": part.pq, "sq": part.sq, "rq": part.rq, "n": part.classes}
        assert found == pytest.approx({key: expected[name][key] for key in found}, abs=1e-9, rel=0)


def test_unmatched_segments_on_void_or_crowds_are_ignored() -> None:
    truth = segmentation(
        np.array([[0, 0, 0, 7, 7, 7, 5, 5, 5, 5]]), [Segment(7, 0, True, iscrowd=True), Segment(5, 2, False)]
    )
    ids = np.full((1, 10), 3)
    excused = count_matches(segmentation(ids, [Segment(3, 0, True)]), truth, 3)
    assert excused.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    charged = count_matches(segmentation(ids, [Segment(3, 1, True)]), truth, 3)
    assert charged[2].tolist() == [0, 1, 0], "void covers only three tenths"


def test_void_does_not_count_towards_the_union() -> None:
    truth = segmentation(np.array([[0, 0, 0, 0, 9, 9, 9, 8]]), [Segment(9, 0, True), Segment(8, 1, False)])
    prediction = segmentation(
        np.array([[2, 2, 2, 2, 2, 2, 1, 1]]), [Segment(2, 0, True), Segment(1, 1, False)]
    )
    iou_units, tp, _, _ = count_matches(prediction, truth, 2)
    assert tp.tolist() == [1, 0]
    assert [units / 2**IOU_BITS for units in iou_units.tolist()] == pytest.approx([2 / 3, 0.0], abs=1e-11)


def test_iou_of_exactly_half_does_not_match() -> None:
    truth = segmentation(np.array([[4, 4]]), [Segment(4, 0, True)])
    prediction = segmentation(np.array([[4, 6]]), [Segment(4, 0, True), Segment(6, 1, True)])
    assert count_matches(prediction, truth, 2)[1:].tolist() == [[0, 0], [1, 1], [1, 0]]


def test_last_listed_crowd_of_a_class_counts() -> None:
    first, last = Segment(1, 0, True, iscrowd=True), Segment(2, 0, True, iscrowd=True)
    ids = np.array([[1, 1, 1, 2]])
    prediction = segmentation(np.array([[9, 9, 9, 9]]), [Segment(9, 0, True)])
    assert count_matches(prediction, segmentation(ids, [first, last]), 1)[2].tolist() == [1]
    assert count_matches(prediction, segmentation(ids, [last, first]), 1)[2].tolist() == [0]


def test_true_segments_without_pixels_are_missed() -> None:
    truth = segmentation(np.array([[4, 4]]), [Segment(4, 0, True), Segment(5, 1, True)])
    prediction = segmentation(np.array([[4, 4]]), [Segment(4, 0, True)])
    assert count_matches(prediction, truth, 2)[3].tolist() == [0, 1]
    result = score([(segmentation(np.zeros((1, 2), dtype=np.int64), []), truth)])
    assert (result.all.pq, result.all.classes) == (0.0, 2)
    assert result.pq.isnan().tolist() == [False, False, True, True, True]


GOOD = segmentation(np.array([[4, 4, 0]]), [Segment(4, 0, True)])


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (replace(GOOD, segments=()), GOOD, "prediction .*4"),
        (GOOD, replace(GOOD, segments=()), "truth .*4"),
        (replace(GOOD, segments=(*GOOD.segments, Segment(6, 1, True))), GOOD, "id 6"),
        (replace(GOOD, segments=GOOD.segments * 2), GOOD, "id 4"),
        (replace(GOOD, segments=(*GOOD.segments, Segment(0, 1, True))), GOOD, "id 0"),
        (replace(GOOD, ids=GOOD.ids[:, :2]), GOOD, r"\(1, 2\).*\(1, 3\)"),
        (replace(GOOD, ids=-GOOD.ids), GOOD, "-4"),
    ],
)
def test_invalid_maps_raise_an_error(
    prediction: PanopticSegmentation, truth: PanopticSegmentation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        count_matches(prediction, truth, 3)


def test_metric_merges_ranks_exactly() -> None:
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng) for _ in range(6)]
    first, second = PanopticQuality(ISTHING), PanopticQuality(ISTHING)
    for number, pair in enumerate(pairs):
        (first if number % 2 else second).update(*pair)
    first.merge_state(second)
    expected = score(pairs)
    found = {name: float(value) for name, value in first.compute().items()}
    assert found == {
        **{name: getattr(expected.all, name) for name in ("pq", "sq", "rq")},
        "pq_things": expected.things.pq,
        "pq_stuff": expected.stuff.pq,
    }
