"""The demo with random weights and a handful of pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from odise_pl.errors import UserError
from odise_pl.runs.record import RunSettings, mark_finished
from odise_pl.toyworld import demo
from odise_pl.toyworld.commands import Programs
from odise_pl.toyworld.demo import check_origin, main
from odise_pl.toyworld.make import main as make

TINY = ["backbone.weights=random", "clip.weights=random", "trainer.max_steps=2", "data.num_workers=0"]


def arguments(folder: Path) -> list[str]:
    settings = [text for setting in TINY for text in ("--set", setting)]
    places = ["--run", str(folder / "run"), "--shards", str(folder / "shards")]
    return [*places, "--count", "16", "2", "2", "--pictures", "2", *settings]


def test_the_demo_and_the_demo_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 0
    run = tmp_path / "run"
    assert "| toy_open, novel |" in (run / "results.md").read_text()
    assert list(run.glob("**/events.out.tfevents.*"))
    assert (run / "checkpoints" / "last.ckpt").exists()
    sheet = Image.open(run / "pictures.png").size
    assert sheet[0] >= 3 * 128
    assert sheet[1] >= 2 * 128
    written = (run / "checkpoints" / "last.ckpt").resolve().stat().st_mtime_ns
    capsys.readouterr()
    assert main(arguments(tmp_path)) == 0  # nothing is trained again
    assert "toy_open, novel" in capsys.readouterr().out
    assert (run / "checkpoints" / "last.ckpt").resolve().stat().st_mtime_ns == written
    (run / "finished.json").unlink()  # as if it had been interrupted after its last step
    assert main(arguments(tmp_path)) == 0
    assert "it goes on from step_2.ckpt" in (run / "train.log").read_text()
    assert (run / "finished.json").is_file()


def test_a_demo_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def failing(command: list[str], **options: Any) -> Any:
        commands.append(command)
        code = 1 if "train.py" in command else 0
        return popen([sys.executable, "-c", f"raise SystemExit({code})"], **options)

    shards = ["--out", str(tmp_path / "shards"), "--train", "16", "--val", "2", "--open", "2"]
    assert make(shards) == 0
    monkeypatch.setattr(subprocess, "Popen", failing)
    assert main(["caption", *arguments(tmp_path)]) == 1
    assert "the same command goes on" in capsys.readouterr().err
    assert ["experiment=toy_caption" in command for command in commands] == [False, True]


def test_what_a_finished_demo_has_lost_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Programs, "call", lambda *_: None)
    monkeypatch.setattr(demo, "check_origin", lambda *_: None)
    folder = tmp_path / "run"
    mark_finished(folder, RunSettings("label", "0", True, "implicit", "both"), {}, "whole")
    assert main(arguments(tmp_path)) == 1
    assert f"last.ckpt is missing: delete {folder}" in capsys.readouterr().err
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    (folder / "results" / "toy_val").mkdir(parents=True)
    for damaged in ("{", "{}", "[]", "3"):
        (folder / "results" / "toy_val" / "results.json").write_text(damaged)
        assert main(arguments(tmp_path)) == 1
        assert "toy_val/results.json cannot be read" in capsys.readouterr().err


def test_sets_of_another_size_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["--run", str(tmp_path / "run"), "--shards", str(tmp_path), "--count", "2", "1", "1"]
    assert make(["--out", str(tmp_path), "--train", "3", "--val", "1", "--open", "1"]) == 0
    assert main(few) == 1
    assert "holds 3 pictures, made from odise_pl.toyworld, seed 0; asked for are 2" in capfd.readouterr().err


def test_a_run_of_other_files_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ["--val", "1", "--open", "1", "--workers", "1"]
    assert make(["--out", str(tmp_path / "two"), "--train", "2", *sizes]) == 0
    assert make(["--out", str(tmp_path / "three"), "--train", "3", *sizes]) == 0
    run = tmp_path / "run"
    check_origin(run, tmp_path / "two")
    check_origin(run, tmp_path / "two")
    with pytest.raises(UserError, match=r"made from other files \(toy_train\): delete it .* --run"):
        check_origin(run, tmp_path / "three")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "clip.safetensors").write_bytes(b"other")
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(UserError, match=r"\(frozen models\)"):
        check_origin(run, tmp_path / "two")
    (run / "made_from.json").write_text("{")
    with pytest.raises(UserError, match="other files"):
        check_origin(run, tmp_path / "two")
