"""The commands of Slurm that submitit calls, for one machine: what ``sbatch`` is asked for runs at once."""

from __future__ import annotations

import sys
from pathlib import Path

_SBATCH = """
import re, subprocess, sys
text = open(sys.argv[-1]).read()
open({record!r}, "w").write(text)
tasks = int(re.search(r"--array=0-([0-9]+)", text)[1]) + 1
# submitit writes what the job has to do after it knows the job's number
subprocess.Popen([sys.executable, {runner!r}, sys.argv[-1], str(tasks)], start_new_session=True,
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
_RUNNER = """
import os, subprocess, sys
script, tasks = sys.argv[1], int(sys.argv[2])
for i in range(tasks):
    job = {"SLURM_JOB_ID": str(8 + i), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(i)}
    task = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    node = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NAME": "odise_pl"}
    subprocess.run(["bash", script], env=os.environ | job | task | node)
"""
_SRUN = """
import os, sys
arguments = sys.argv[1:]
while arguments[0].startswith("--"):
    takes_value = arguments[0] in ("--output", "--error")
    arguments = arguments[2 if takes_value else 1:]
os.execvp(arguments[0], arguments)
"""
_SACCT = """
print("JobID|State|NodeList")
for i in range(100):
    print(f"7_{i}|RUNNING|localhost")
"""
_SCONTROL = 'print("localhost")'


def install(folder: Path) -> Path:
    """Write the commands into a folder for PATH; returns where ``sbatch`` leaves the last script."""
    folder.mkdir()
    record, runner = folder / "submitted.sh", folder / "runner.py"
    runner.write_text(_RUNNER)
    sbatch = _SBATCH.format(record=str(record), runner=str(runner))
    for name, code in (("sbatch", sbatch), ("srun", _SRUN), ("sacct", _SACCT), ("scontrol", _SCONTROL)):
        (folder / name).write_text(f"#!{sys.executable}\n{code.lstrip()}")
        (folder / name).chmod(0o755)
    return record
