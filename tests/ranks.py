"""Processes that play the ranks of a run on this machine, started as launchers start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

ROOT = Path(__file__).parents[1]
Launcher = Callable[[int, int, int, int], dict[str, str]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(node: int, local: int, nodes: int, devices: int) -> dict[str, str]:
    """What torchrun sets."""
    return {
        "RANK": str(node * devices + local),
        "LOCAL_RANK": str(local),
        "GROUP_RANK": str(node),
        "WORLD_SIZE": str(nodes * devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "TORCHELASTIC_RUN_ID": "test",
    }


def slurm(node: int, local: int, nodes: int, devices: int) -> dict[str, str]:
    """What srun sets."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "odise_pl",
        "SLURM_NTASKS": str(nodes * devices),
        "SLURM_NTASKS_PER_NODE": str(devices),
        "SLURM_PROCID": str(node * devices + local),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        "SLURM_NNODES": str(nodes),
        "SLURM_NODELIST": "localhost",
    }


def run(launcher: Launcher, nodes: int, devices: int, arguments: Sequence[str], limit: float = 500) -> str:
    """Start a program on every rank; returns what all printed once all have ended well."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | place | {"PYTHONPATH": path} | launcher(node, local, nodes, devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(nodes)
        for local in range(devices)
    ]
    try:
        printed = [process.communicate(timeout=limit)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    failed = [text for text, process in zip(printed, started, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)
    return "\n".join(printed)


class Seen(Callback):
    """Writes down which images each rank trains on, epoch by epoch."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        with (self.folder / f"seen_{trainer.global_rank}.txt").open("a") as file:
            print(trainer.current_epoch, *batch.image_ids, file=file)
