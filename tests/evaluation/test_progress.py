"""An interrupted and resumed evaluation scores every batch exactly once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from odise_pl.evaluation.progress import Progress
from odise_pl.metrics.report import as_dict
from odise_pl.metrics.suite import SegmentationMetrics
from odise_pl.structures import Instances, PanopticSegmentation, Prediction, Segment, Truth

BATCHES = 23


def score(metrics: SegmentationMetrics, batch: int) -> None:
    """Score an image with a partly correct prediction."""
    random = np.random.default_rng(batch)
    ids, found = (
        torch.from_numpy(np.kron(random.integers(0, 4, (2, 3)), np.ones((4, 5), dtype=int))) for _ in "ab"
    )
    found = torch.where(torch.from_numpy(random.random(ids.shape) < 0.9), ids, found)
    segments = [tuple(Segment(i, i - 1, i < 3) for i in m.unique().tolist() if i) for m in (ids, found)]
    masks = torch.stack([found == 1, found == 2])
    instances = Instances(torch.tensor([0, 1]), torch.from_numpy(random.random(2)), masks)
    prediction = Prediction(PanopticSegmentation(found, segments[1]), instances, found - 1)
    metrics.skip(batch % 3)
    metrics.update([prediction], [Truth(PanopticSegmentation(ids, segments[0]))], [batch])


def fresh() -> SegmentationMetrics:
    return SegmentationMetrics((True, True, False), ("a", "b", "c"))


def result(metrics: SegmentationMetrics) -> str:
    return json.dumps(as_dict(metrics.compute(), "x"))


@pytest.mark.parametrize("seed", range(4))
def test_every_batch_counts_once_after_kills(seed: int, tmp_path: Path) -> None:
    """Runs of one to four ranks, which save at random and are killed at random."""
    random = np.random.default_rng(seed)
    for number in range(20):
        world_size, last = int(random.integers(1, 5)), number == 19
        ranks = [(Progress(tmp_path, "digest"), fresh()) for _ in range(world_size)]
        done = {progress.restore(metrics, r, world_size) for r, (progress, metrics) in enumerate(ranks)}
        assert len(done) == 1, "all ranks agree"
        left = sorted(set(range(BATCHES)) - next(iter(done)))
        for rank, (progress, metrics) in enumerate(ranks):
            progress.every = 0 if random.random() < 0.3 else 1e9
            own = left[rank::world_size]
            for batch in own if last else own[: int(random.integers(0, 3))]:
                score(metrics, batch)
                progress.add(batch, metrics, rank)
            if random.random() < 0.5 and not last:
                progress.save(metrics, rank)
    whole = fresh()
    for _, metrics in ranks:
        whole.add(metrics.state())
    alone = fresh()
    for batch in range(BATCHES):
        score(alone, batch)
    assert result(whole) == result(alone)


def test_progress_of_another_evaluation_is_ignored(tmp_path: Path) -> None:
    metrics = fresh()
    score(metrics, 0)
    progress = Progress(tmp_path, "one", every=0)
    progress.add(0, metrics, 0)
    assert Progress(tmp_path, "one").restore(fresh(), 0, 1) == {0}
    assert Progress(tmp_path, "other").restore(fresh(), 0, 1) == set()
    summary = as_dict(metrics.compute(), "x")
    progress.finish(summary)
    assert Progress(tmp_path, "one").summary() == json.loads(json.dumps(summary))
    assert Progress(tmp_path, "other").summary() is None
    assert [path.name for path in tmp_path.iterdir()] == ["done.json"]


def test_damaged_files_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics, progress = fresh(), Progress(tmp_path, "digest")
    score(metrics, 0)
    progress.add(0, metrics, 0)
    progress.save(metrics, 0)
    path = tmp_path / "rank0.json"
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "rank1.json").write_bytes(b"")
    (tmp_path / "done.json").write_text('{"digest": ')
    other = Progress(tmp_path, "digest")
    assert other.summary() is None
    assert other.done() == other.restore(fresh(), 0, 1) == frozenset()
    assert {"rank0.json", "rank1.json", "done.json"} <= set(caplog.text.replace("/", " ").split())
