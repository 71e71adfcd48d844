from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from panoptic_maps import ISTHING, perfect_instances, segmentation
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from odise_pl.metrics.mask_ap import MaskAPResult, image_objects, mask_ap
from odise_pl.structures import Instances, PanopticSegmentation, Segment, TrueInstances

Truths = dict[int, PanopticSegmentation | TrueInstances]
Found = dict[int, Instances]


def score(found: Found, truths: Truths, isthing: tuple[bool, ...] = ISTHING) -> MaskAPResult:
    objects = [image_objects(found[i], truth, i, isthing) for i, truth in truths.items()]
    return mask_ap(objects, isthing)


def encode(mask: torch.Tensor) -> dict[str, object]:
    return coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def annotated(panoptic: PanopticSegmentation) -> TrueInstances:
    """The things of a map as objects."""
    things = [s for s in panoptic.segments if s.isthing]
    masks = [panoptic.ids == s.id for s in things]
    return TrueInstances(
        labels=torch.tensor([s.category for s in things], dtype=torch.int64),
        masks=torch.stack(masks) if masks else torch.zeros(0, *panoptic.ids.shape, dtype=torch.bool),
        crowd=torch.tensor([s.iscrowd for s in things], dtype=torch.bool),
        areas=torch.tensor([int(mask.sum()) for mask in masks], dtype=torch.float64),
    )


def pycocotools_stats(found: Found, truths: Truths) -> list[float]:
    """The six numbers of pycocotools."""
    truth, annotations, results = COCO(), [], []
    for image_id, either in truths.items():
        objects = either if isinstance(either, TrueInstances) else annotated(either)
        rows = zip(
            *(objects.labels.tolist(), objects.masks, objects.crowd.int().tolist(), objects.areas.tolist()),
            strict=True,
        )
        for number, (label, mask, crowd, area) in enumerate(rows, start=len(annotations) + 1):
            shape = {"segmentation": encode(mask), "area": area, "iscrowd": crowd}
            annotations.append({"id": number, "image_id": image_id, "category_id": label, **shape})
        instances = found[image_id]
        rows = zip(instances.labels.tolist(), instances.scores.tolist(), instances.masks, strict=True)
        for label, confidence, mask in rows:
            shape = {"segmentation": encode(mask), "score": confidence}
            results.append({"image_id": image_id, "category_id": label, **shape})
    sizes = {i: instances.masks.shape[1:] for i, instances in found.items()}
    truth.dataset = {
        "images": [{"id": i, "height": height, "width": width} for i, (height, width) in sizes.items()],
        "annotations": annotations,
        "categories": [{"id": c} for c, thing in enumerate(ISTHING) if thing],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [max(float(value), 0.0) for value in evaluation.stats[:6]]


def six(result: MaskAPResult) -> list[float]:
    return [result.ap, result.ap50, result.ap75, result.ap_small, result.ap_medium, result.ap_large]


def random_scene(rng: np.random.Generator, count: int) -> tuple[Truths, Found]:
    """Blocks with crowds and stuff; detections are moved, duplicate, relabelled or missing blocks."""
    truths, found = {}, {}
    things = [c for c, thing in enumerate(ISTHING) if thing]
    for image_id in rng.choice(10_000, count, replace=False).tolist():
        scale = int(rng.choice([6, 40, 110]))
        ids = np.kron(rng.integers(0, 7, (3, 3)), np.ones((scale, scale), dtype=np.int64)) * 100_003
        segments = []
        for value in np.unique(ids[ids > 0]).tolist():
            category = int(rng.integers(len(ISTHING)))
            segments.append(Segment(value, category, ISTHING[category], iscrowd=bool(rng.random() < 0.2)))
        truths[image_id] = segmentation(ids, segments)
        masks, labels = [np.zeros(ids.shape, dtype=bool)], [things[0]]
        for segment in segments:
            for _ in range(int(rng.integers(0, 3))):
                move = rng.integers(0, max(scale // 3, 1), 2)
                masks.append(np.roll(ids == segment.id, tuple(move), (0, 1)))
                labels.append(segment.category if segment.isthing else int(rng.choice(things)))
        found[image_id] = Instances(
            labels=torch.tensor(labels),
            scores=torch.from_numpy(rng.integers(0, 12, len(labels)) / 11),  # with ties
            masks=torch.from_numpy(np.stack(masks)),
        )
    return truths, found


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equals_pycocotools_on_random_scenes(seed: int, objects_overlap: bool) -> None:
    """Against the things of panoptic maps, and against annotated objects with areas of their own."""
    random = np.random.default_rng(seed)
    truths, found = random_scene(random, 3)
    truths = dict(sorted(truths.items()))
    if objects_overlap:
        for image_id, truth in truths.items():
            exact = annotated(truth)
            moved = exact.masks.roll(tuple(random.integers(0, 9, 2).tolist()), (1, 2))
            areas = exact.areas * torch.from_numpy(random.uniform(0.5, 3, len(exact.areas)))
            truths[image_id] = replace(exact, masks=exact.masks | moved, areas=areas)
    result = score(found, truths)
    assert six(result) == pytest.approx(pycocotools_stats(found, truths), abs=1e-9, rel=0)
    assert result.num_annotated == 3 * objects_overlap


def test_mean_of_per_class_is_ap_and_absent_classes_are_nan() -> None:
    truths, found = random_scene(np.random.default_rng(1), 6)
    result = score(found, truths)
    present = {s.category for t in truths.values() for s in t.segments if s.isthing and not s.iscrowd}
    assert {c for c in range(len(ISTHING)) if not result.per_class[c].isnan()} == present
    assert float(result.per_class.nanmean()) == pytest.approx(result.ap, abs=1e-12)
    assert result.classes == len(present)
    assert 0 < result.ap < 1


TRUTH = segmentation(
    np.array([[7, 7, 8], [7, 7, 9]]), [Segment(7, 0, True), Segment(8, 1, True), Segment(9, 2, False)]
)
NONE = Instances(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, 2, 3, dtype=torch.bool))


def test_perfect_and_empty_predictions(capfd: pytest.CaptureFixture[str]) -> None:
    perfect = score({1: perfect_instances(TRUTH)}, {1: TRUTH})
    assert (perfect.ap, perfect.ap50, perfect.ap75, perfect.ap_small) == (1.0, 1.0, 1.0, 1.0)
    empty = score({1: NONE}, {1: TRUTH})
    assert six(empty) == [0.0] * 6
    assert empty.per_class[:2].tolist() == [0.0, 0.0]
    assert six(score({}, {})) == [0.0] * 6
    no_truth = score({1: perfect_instances(TRUTH)}, {1: replace(TRUTH, ids=TRUTH.ids * 0, segments=())})
    assert (no_truth.ap, no_truth.classes) == (0.0, 0)
    assert score({1: NONE}, {1: replace(TRUTH, segments=())}, (False,)).per_class.isnan().all()
    assert capfd.readouterr().out == ""


def _instances(labels: list[int], scores: list[float], height: int = 2) -> Instances:
    masks = torch.ones(1, height, 3, dtype=torch.bool)
    return Instances(torch.tensor(labels), torch.tensor(scores), masks)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (_instances([0], [0.5], height=4), r"\(4, 3\).*\(2, 3\)"),
        (_instances([0], [float("nan")]), "score"),
        (_instances([5], [0.5]), "class 5"),
        (_instances([2], [0.5]), "class 2"),
    ],
)
def test_invalid_instances_raise_an_error(found: Instances, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score({1: found}, {1: TRUTH})
