"""One run at a time in a folder, and ranks that know whose they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interruptions import ROOT, options, started, wait_for

from odise_pl.distributed.launch import first_process, note_first_process, sole_run
from odise_pl.errors import SettingError

HOLD = """
import sys, time
from odise_pl.distributed.launch import sole_run
with sole_run(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holding(folder: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_in_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with holding(tmp_path, 60) as other:
        with pytest.raises(SettingError) as refused, sole_run(tmp_path, patience=0.3):
            pass
        assert f"{tmp_path} is in use by process {other.pid} on " in str(refused.value)
        assert "run=NAME" in str(refused.value)
        other.kill()  # which gives the lock back
        other.wait()
        with sole_run(tmp_path, patience=5):
            pass


def test_it_waits_for_a_run_that_is_ending(tmp_path: Path) -> None:
    with holding(tmp_path, 1), sole_run(tmp_path, patience=30):
        pass


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_other_ranks_ask_for_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with holding(tmp_path, 60) as other:
        with sole_run(tmp_path, patience=0):
            pass
        other.kill()


def test_a_program_that_was_started_by_another_is_a_first_process_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ODISE_PL_FIRST_PROCESS", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    note_first_process()
    assert first_process() == os.getpid()
    monkeypatch.setenv("ODISE_PL_FIRST_PROCESS", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")  # Lightning has started it
    note_first_process()
    assert first_process() == 1


def test_a_rank_whose_first_process_dies_while_it_starts_does_not_stay(
    scene_shards: Path, tmp_path: Path
) -> None:
    import psutil

    arguments = options(scene_shards, 9, "trainer.devices=2", "trainer.strategy=ddp", "data.num_workers=0")
    with started(tmp_path, arguments) as process:
        first = psutil.Process(process.pid)
        wait_for(lambda: bool(first.children()), process)
        (other,) = first.children()
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs([other], timeout=120)
        assert not alive
