from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from panoptic_maps import ISTHING, empty, perfect, random_pair, segmentation

from odise_pl.metrics.report import as_dict
from odise_pl.metrics.suite import SegmentationMetrics
from odise_pl.structures import Instances, PanopticSegmentation, Prediction, Segment, TrueInstances, Truth

NAMES = ("cat", "dog", "grass", "sky", "cow")
# The images of two ranks.
SPLITS = {"uneven": ((4, 0, 5, 2, 1), (3, 6)), "empty rank": ((), (6, 5, 4, 3, 2, 1, 0)), "nothing": ((), ())}


def scene(seed: int) -> tuple[Prediction, PanopticSegmentation]:
    """Truth with crowds and void, and a noisy prediction of it."""
    rng = np.random.default_rng(seed)
    found, truth = random_pair(rng)
    prediction = perfect(Truth(found))
    prediction.instances.scores[:] = torch.from_numpy(rng.random(len(prediction.instances.scores)))
    return prediction, truth


def evaluate(seeds: tuple[int, ...]) -> str:
    metrics = SegmentationMetrics(ISTHING, NAMES)
    metrics.update([scene(9)[0]], [Truth(scene(9)[1])], [1])
    metrics.skip(3)
    metrics.reset()
    for seed in seeds:
        prediction, truth = scene(seed)
        metrics.update([prediction], [Truth(truth)], [100 + seed])
    return json.dumps(as_dict(metrics.compute(), "scenes"))


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: evaluate(split[rank]) for name, split in SPLITS.items()}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    # forked, because importing torch again is slow
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second, "every rank gets the whole result"
    alone = evaluate(tuple(range(7)))
    assert 0 < json.loads(alone)["panoptic"]["all"]["pq"] < 1
    assert 0 < json.loads(alone)["instances"]["ap"] < 1
    assert first["uneven"] == first["empty rank"] == alone, "to the last digit"
    assert first["nothing"] == evaluate(())


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
