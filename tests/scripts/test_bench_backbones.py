"""The benchmark of backbones, on the smallest one."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts import bench_backbones


def test_rows_are_added_to_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_backbones, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    file = tmp_path / "backbones.json"
    file.write_text(json.dumps({"rows": [{"name": "clip_l"}, {"name": "tiny", "windows": 0}]}))
    monkeypatch.setattr(sys, "argv", ["bench_backbones.py", "--only", "tiny", "--json", str(file)])
    bench_backbones.main()
    other, tiny = json.loads(file.read_text())["rows"]
    assert other == {"name": "clip_l"}
    assert (tiny["window"], tiny["input_size"], tiny["windows"]) == (256, 256, 16)
    assert tiny["features_s"] > 0
    assert 0 < tiny["parameters_million"] < 10
    assert 0 < tiny["peak_gib"] < 4
