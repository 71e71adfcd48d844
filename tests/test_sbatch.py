"""The job script of a cluster, with commands that stand in for Slurm's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.sbatch"
SRUN = '#!/bin/bash\nshift\nexec "$@"\n'
SCONTROL = '#!/bin/bash\necho "$@" > requeued\n'
# ends with the code that it is given, at once or, when it is told to wait, with 143 at SIGTERM
PYTHON = """#!/bin/bash
echo "$@" > arguments
trap 'sleep 0.3; exit 143' TERM
for last; do true; done
[ "$last" = wait ] || exit "$last"
touch started
while true; do sleep 0.1; done
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    return tmp_path


def start(job: Path, option: str) -> subprocess.Popen[bytes]:
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "77"}
    path = {"PATH": f"{job / 'bin'}:{os.environ['PATH']}"}
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.Popen([bash, str(SCRIPT), option], cwd=job, env=os.environ | slurm | path)


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_ends_by_itself_ends_with_its_code(job: Path, code: int) -> None:
    assert start(job, str(code)).wait(30) == code
    assert not (job / "requeued").exists()
    arguments = (job / "arguments").read_text().split()
    assert arguments[:3] == ["train.py", "trainer.num_nodes=2", "trainer.devices=8"]


def test_a_job_that_is_asked_to_end_waits_for_the_saving_and_is_put_into_the_queue_again(job: Path) -> None:
    with start(job, "wait") as script:
        while not (job / "started").exists():
            assert script.poll() is None
        script.send_signal(signal.SIGTERM)
        assert script.wait(30) == 143
    assert (job / "requeued").read_text().split() == ["requeue", "77"]
