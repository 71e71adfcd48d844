"""The benchmark of GPUs, on this processor."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from scripts import bench_gpu
from scripts.steps import toy


@pytest.mark.slow
def test_rows_of_all_modes_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "MODES", bench_gpu.MODES[:3])
    monkeypatch.setattr(bench_gpu, "measure", partial(bench_gpu.measure, repetitions=1))
    plan = [bench_gpu.Work("evaluation", 64, 128), bench_gpu.Work("training", 64, 64, 2)]
    rows = list(bench_gpu.bench(toy(), plan, time.monotonic() + 3600, peak=1.0))
    assert [row["outcome"] for row in rows] == ["measured"] * 6
    for row in rows:
        assert row["images_per_second"] == (2 if "training" in row["name"] else 1) / row["seconds"]
        peak = 0.5 if "fp32" in row["name"] else 1.0
        assert row["share_of_peak"] == row["tflop"] / row["seconds"] / peak
        assert row["peak_gib"] > 0
    assert rows[0]["tflop"] == rows[2]["tflop"] != rows[1]["tflop"]


def test_without_time_everything_is_listed_as_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--tiny", "--budget", "0", "--json", str(figures)])
    bench_gpu.main()
    rows = json.loads(figures.read_text())["rows"]
    assert len({row["name"] for row in rows}) == 4 * 5
    assert {row["outcome"] for row in rows} == {"skipped: time is up"}
