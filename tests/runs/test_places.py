from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from odise_pl.runs.folders import unwritable

ROOT = Path(__file__).parents[2]


def test_folders_that_are_there_or_can_be_made(tmp_path: Path) -> None:
    assert unwritable(tmp_path) is None
    assert unwritable(tmp_path / "a" / "b") is None


def test_files_are_no_folders(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "a" / "b"):
        assert unwritable(folder) == f"{file} is a file, not a folder"


def test_what_others_protect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert unwritable(tmp_path / "a") == f"{tmp_path} cannot be written"


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_a_run_whose_folder_is_a_file_ends_in_one_line(program: str, tmp_path: Path) -> None:
    """Also one whose name is made of Hydra's own settings."""
    (tmp_path / "runs").touch()
    for folder in (f"{tmp_path}/runs/mine", f"{tmp_path}/runs/${{hydra:runtime.choices.model}}"):
        command = [sys.executable, program, f"hydra.run.dir={folder}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: run folder {tmp_path}/runs/")
        assert f"{tmp_path}/runs is a file, not a folder" in done.stderr
        assert len(done.stderr.splitlines()) == 1
