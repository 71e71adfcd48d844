"""The job script of a cluster, with commands that stand in for Slurm's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.sbatch"
# srun answers SIGTERM by killing its tasks; scancel is what signals them
SRUN = """#!/bin/bash
shift
trap 'kill -KILL $!' TERM
"$@" &
wait $!
"""
SCANCEL = '#!/bin/bash\n[ "$*" = "--signal=TERM 77" ] && kill -TERM $(cat task)\n'
SQUEUE = '#!/bin/bash\n[ "$*" = "--noheader --jobs 77 --format %T" ] && cat state\n'
SCONTROL = '#!/bin/bash\necho "$@" > requeued\n'
# exits with the code of its last argument, or waits and exits with 143 after SIGTERM
PYTHON = """#!/bin/bash
echo "$@" > arguments
echo $$ > task
trap 'sleep 0.3; exit 143' TERM
for last; do true; done
[ "$last" = wait ] || exit "$last"
touch started
while true; do sleep 0.1; done
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    commands = {"srun": SRUN, "scancel": SCANCEL, "squeue": SQUEUE, "scontrol": SCONTROL, "python": PYTHON}
    for name, content in commands.items():
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
def test_job_ends_with_the_code_of_training(job: Path, code: int) -> None:
    assert start(job, str(code)).wait(30) == code
    assert not (job / "requeued").exists()
    arguments = (job / "arguments").read_text().split()
    assert arguments[:3] == ["train.py", "trainer.num_nodes=2", "trainer.devices=8"]


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("COMPLETING", False)])
def test_sigterm_waits_for_saving_and_requeues_unless_cancelled(
    job: Path, state: str, requeued: bool
) -> None:
    (job / "state").write_text(f"{state}\n")
    with start(job, "wait") as script:
        while not (job / "started").exists():
            assert script.poll() is None
        script.send_signal(signal.SIGTERM)
        assert script.wait(30) == 143
    assert (job / "requeued").exists() == requeued
    if requeued:
        assert (job / "requeued").read_text().split() == ["requeue", "77"]
