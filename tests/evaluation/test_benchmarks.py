"""Evaluation of several sets: interrupted, resumed, and with damaged samples."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning
import pytest
from panoptic_maps import perfect
from torch import nn

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.records import DataError
from odise_pl.errors import UserError
from odise_pl.evaluation.benchmarks import Output, evaluate_all
from odise_pl.evaluation.module import Benchmark
from odise_pl.evaluation.progress import Progress
from odise_pl.evaluation.writer import PredictionError, PredictionWriter
from odise_pl.metrics.suite import SegmentationMetrics
from odise_pl.structures import Batch, Prediction

SETS = {"coco": "coco_val2017", "ade150": "ade150_val", "pas21": "pas21_val"}


class Predictor(nn.Module):
    """Moves the truth a little; raises after ``limit`` images."""

    def __init__(self, asked: list[str], limit: int) -> None:
        super().__init__()
        self.asked, self.limit = asked, limit

    def forward(self, batch: Batch) -> list[Prediction]:
        if len(self.asked) == self.limit:
            raise RuntimeError("killed")
        self.asked += batch.keys
        return [perfect(truth, 3) for truth in batch.truths if truth is not None]


def evaluate(
    shards: Path, folder: Path, asked: list[str], limit: int = 1000, **changes: Any
) -> dict[str, dict[str, float]]:
    data = PanopticDataModule(val={name: str(shards / out) for name, out in SETS.items()}, num_workers=0)
    predictor = Predictor(asked, limit)
    benchmarks = [
        Benchmark(name, data, data.vocabulary(name), predictor, data.measures(name)) for name in SETS
    ]
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    output = Output(folder, **{"settings": {"a": 1}, "about": {}, "predictions": folder / "kept", **changes})
    return evaluate_all(benchmarks, trainer, output)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(benchmark_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted evaluation."""
    folder = tmp_path_factory.mktemp("whole")
    asked: list[str] = []
    scores = evaluate(benchmark_shards, folder, asked)
    assert len(asked) == 9
    assert 0 < scores["coco"]["pq"] < 1
    return folder


def test_interrupted_evaluations_resume(whole: Path, benchmark_shards: Path, tmp_path: Path) -> None:
    """After interruptions within and between sets, all files are byte for byte the same."""
    asked: list[str] = []
    for limit in (2, 3):
        with pytest.raises(RuntimeError, match="killed"):
            evaluate(benchmark_shards, tmp_path, asked, limit)
        assert len(asked) == limit
    evaluate(benchmark_shards, tmp_path, asked)
    assert len(asked) == 9, "nothing is predicted twice"
    assert files(tmp_path) == files(whole)


def test_batches_with_missing_predictions_are_repeated(
    whole: Path, benchmark_shards: Path, tmp_path: Path
) -> None:
    asked: list[str] = []
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(benchmark_shards, tmp_path, asked, 5)
    (tmp_path / "kept/ade150/.parts/000000000.json").unlink()
    shutil.rmtree(tmp_path / "kept" / "coco")
    evaluate(benchmark_shards, tmp_path, asked)
    assert len(asked) == 5 + 3 + 2 + 3
    assert files(tmp_path) == files(whole)


def test_signal_while_parts_are_joined_loses_nothing(
    whole: Path, benchmark_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PredictionWriter.finish

    def interrupted(self: PredictionWriter, images: int) -> None:
        original(self, images)
        os.kill(os.getpid(), signal.SIGTERM)

    asked: list[str] = []
    monkeypatch.setattr(PredictionWriter, "finish", interrupted)
    with pytest.raises(SystemExit):
        evaluate(benchmark_shards, tmp_path, asked)
    monkeypatch.undo()
    evaluate(benchmark_shards, tmp_path, asked)
    assert len(asked) == 9
    assert files(tmp_path) == files(whole)


def test_other_evaluation_neither_resumes_nor_overwrites(benchmark_shards: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(benchmark_shards, tmp_path, asked, 5)
    with pytest.raises(PredictionError, match=f"{tmp_path}/kept/coco already contains"):
        evaluate(benchmark_shards, tmp_path, asked, settings={"a": 2})
    shutil.rmtree(tmp_path / "kept" / "coco")
    (tmp_path / "kept" / "pas21").mkdir()
    (tmp_path / "kept" / "pas21" / "panoptic.json").touch()
    shutil.rmtree(tmp_path / "kept" / "ade150")
    with pytest.raises(PredictionError, match=f"{tmp_path}/kept/pas21 already contains"):
        evaluate(benchmark_shards, tmp_path, asked, settings={"a": 2})
    assert len(asked) == 5, "refused before the first set"
    evaluate(benchmark_shards, tmp_path, asked, settings={"a": 2}, predictions=None)
    assert len(asked) == 5 + 9


@pytest.mark.parametrize(("signum", "scoring"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_signal_stops_between_batches_with_its_exit_status(
    signum: int,
    scoring: bool,
    whole: Path,
    benchmark_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A signal during prediction or scoring; only the current batch is repeated."""
    kind, name = (SegmentationMetrics, "update") if scoring else (Predictor, "forward")
    original, calls = getattr(kind, name), []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signum)
        return original(*arguments)

    monkeypatch.setattr(kind, name, interrupted)
    before = signal.getsignal(signum)
    asked: list[str] = []
    with pytest.raises(SystemExit) as stopped:
        evaluate(benchmark_shards, tmp_path, asked)
    assert stopped.value.code == 128 + signum
    assert f"stopped by {signal.Signals(signum).name}" in caplog.text
    assert signal.getsignal(signum) == before
    assert len(asked) == (3 if scoring else 2)
    evaluate(benchmark_shards, tmp_path, asked)
    assert len(asked) == (10 if scoring else 9)
    assert files(tmp_path) == files(whole)


def test_damaged_samples_are_counted_and_sets_without_others_refused(
    benchmark_shards: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(benchmark_shards, shards)
    (shard,) = (shards / "pas21_val").glob("*.tar")
    content = bytearray(shard.read_bytes())
    place = content.find(b"\xff\xd8\xff")  # the first image
    content[place : place + 200] = bytes(200)
    shard.write_bytes(content)
    evaluate(shards, tmp_path / "one", [], predictions=None)
    result = json.loads((tmp_path / "one" / "pas21" / "results.json").read_text())
    assert (result["images"], result["left_out"]) == (2, 1)
    shard.write_bytes(b"")
    with pytest.raises(DataError, match="no sample can be read"):
        evaluate(shards, tmp_path / "none", [], predictions=None)


def test_damaged_progress_is_named(tmp_path: Path) -> None:
    progress = Progress(tmp_path, "digest")
    progress.add(7, {"skipped": 0})
    (path,) = progress.folder.iterdir()
    path.write_bytes(b"{")
    with pytest.raises(UserError, match=str(path)):
        progress.read(7)
