"""One run at a time in a folder, ranks that end with their first process, and exit codes of a stopped run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from odise_pl.distributed.processes import sole_run
from odise_pl.distributed.shutdown import Preempted
from odise_pl.errors import SettingError

FIRST = """
import os, subprocess, sys, time
from odise_pl.distributed.processes import watch_first_process
watch_first_process()
if "LOCAL_RANK" not in os.environ:
    command = [sys.executable, "-c", sys.argv[1], sys.argv[1]]
    other = subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": "1"})
    print(other.pid, flush=True)
time.sleep(60)
"""


def test_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(SettingError, match=rf"{tmp_path} .*run=NAME")
    with FileLock(tmp_path / ".lock"), refused, sole_run(tmp_path, timeout=0.1):
        pass
    with sole_run(tmp_path, timeout=0.1):
        pass


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_other_ranks_need_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with FileLock(tmp_path / ".lock"), sole_run(tmp_path, timeout=0):
        pass


def test_rank_ends_with_its_first_process() -> None:
    with subprocess.Popen([sys.executable, "-c", FIRST, FIRST], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        other = psutil.Process(int(first.stdout.readline()))
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        _, alive = psutil.wait_procs([other], timeout=20)
        assert not alive


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({"ODISE_PL_FIRST_PROCESS": "1", "LOCAL_RANK": "1"}, True),
        ({"ODISE_PL_FIRST_PROCESS": str(os.getpid()), "LOCAL_RANK": "0"}, False),
        ({"ODISE_PL_FIRST_PROCESS": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "7"}, False),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, False),
    ],
)
def test_exit_code_of_a_stopped_run(
    environment: dict[str, str], launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning kills rank 0 when a process that it launched ends with anything but 0."""
    for name in ("ODISE_PL_FIRST_PROCESS", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)):
        assert Preempted(number).code == (0 if launched else code)
