"""Panoptic quality against hotcoco, an independent implementation that follows COCO's own script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hotcoco.panoptic import PanopticEval
from panoptic_maps import ISTHING, read_coco_mini, segmentation, shifted
from PIL import Image

from odise_pl.metrics.panoptic_quality import PanopticQuality
from odise_pl.structures import PanopticSegmentation, Segment

Pair = tuple[PanopticSegmentation, PanopticSegmentation]


def random_pair(rng: np.random.Generator) -> Pair:
    """Truth with void and crowds, several of one class included, and a prediction that partly agrees."""
    labels = np.kron(rng.integers(0, 7, (3, 4)), np.ones((3, 5), dtype=np.int64))
    changed = np.where(rng.random(labels.shape) < 0.2, rng.integers(0, 7, labels.shape), labels)
    moved = np.roll(changed, tuple(rng.integers(0, 3, 2)), (0, 1))
    categories = rng.integers(0, len(ISTHING), 7)
    others = np.where(rng.random(7) < 0.3, rng.integers(0, len(ISTHING), 7), categories)
    return painted(rng, moved, others, crowds=0.0), painted(rng, labels, categories, crowds=0.35)


def painted(
    rng: np.random.Generator, labels: np.ndarray, categories: np.ndarray, crowds: float
) -> PanopticSegmentation:
    ids = np.array([0, *rng.choice(2**24 - 1, 6, replace=False) + 1])
    segments = [
        Segment(int(ids[k]), int(categories[k]), ISTHING[categories[k]], iscrowd=bool(rng.random() < crowds))
        for k in rng.permutation(np.arange(1, 7))
        if (labels == k).any()
    ]
    return segmentation(ids[labels], segments)


def write_coco(folder: Path, maps: list[PanopticSegmentation], isthing: tuple[bool, ...]) -> Path:
    """COCO's panoptic JSON, with the PNG files in the folder of its name."""
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
    metric = PanopticQuality(isthing)
    metric.update([prediction for prediction, _ in pairs], [truth for _, truth in pairs])
    result = metric.compute()
    predictions = write_coco(folder / "predictions", [p for p, _ in pairs], isthing)
    truths = write_coco(folder / "truths", [t for _, t in pairs], isthing)
    evaluation = PanopticEval(truths, predictions)
    evaluation.evaluate()
    expected = evaluation.results()
    for name, part in (("All", result.all), ("Things", result.things), ("Stuff", result.stuff)):
        found = {"pq": part.pq, "sq": part.sq, "rq": part.rq, "n": part.num_classes}
        assert found == pytest.approx({key: expected[name][key] for key in found}, abs=1e-9, rel=0)


@pytest.mark.parametrize("seed", range(4))
def test_random_maps(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    assert_equals_hotcoco([random_pair(rng) for _ in range(30)], ISTHING, tmp_path)


def test_real_maps(tmp_path: Path) -> None:
    coco = read_coco_mini(24)
    pairs = [(shifted(truth), truth) for truth in coco.truths.values()]
    assert_equals_hotcoco(pairs, coco.isthing, tmp_path)
