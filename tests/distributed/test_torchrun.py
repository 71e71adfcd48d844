"""Two machines under torchrun: a rank that dies, with restarts and without, and SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ranks
from interruptions import ROOT, assert_same_end, options, run, step_of, wait_for

pytestmark = pytest.mark.slow  # four programs at a time: minutes on two cores

STEPS = 8
SECONDS = 30  # from the death of a rank to the end on all machines: there is no hang
EACH = ["validate_every=100", "data.num_workers=0"]
PLACES = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp"]

Agent = subprocess.Popen[bytes]
Start = Callable[[int], Agent]


@contextmanager
def agents(folder: Path, shards: Path, restarts: int, faults: str = "") -> Iterator[Start]:
    """The command of the README with one process on each of two machines; gives what starts a machine."""
    every: list[Agent] = []
    port = ranks.free_port()
    address = f"127.0.0.1:{port}"
    launcher = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}",
                "--rdzv-id=test", "--local-addr=127.0.0.1", f"--max-restarts={restarts}"]  # fmt: skip
    program = ["tests/faulty_train.py", f"hydra.run.dir={folder}", *options(shards, STEPS, *EACH, *PLACES)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FAULTS": faults, "OMP_NUM_THREADS": "1"}
    # torchrun would keep one store for all its rounds, in which ranks find the addresses of the last round
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"

    def start(machine: int) -> Agent:
        with (folder / f"machine_{machine}.txt").open("a") as output:
            command = [sys.executable, "-m", "torch.distributed.run", *launcher, *program]
            every.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output,
                                          stderr=subprocess.STDOUT, start_new_session=True))  # fmt: skip
        # the first is the host: all have its address here, and whoever comes first would be
        wait_for(lambda: listens(port), every[0])
        return every[-1]

    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield start
    finally:
        for agent in every:
            if agent.poll() is None:
                for process in (*psutil.Process(agent.pid).children(recursive=True), agent):
                    process.kill()
                agent.wait()


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("machine_*.txt")))


def test_rank_that_dies_restarts_with_all_others(scene_shards: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    arguments = options(scene_shards, STEPS, *EACH, "trainer.devices=2", "trainer.strategy=ddp")
    done = run(whole, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    with agents(tmp_path, scene_shards, 1, "die_first:1:3") as start:
        codes = [agent.wait(300) for agent in [start(0), start(1)]]
    assert codes == [0, 0], said(tmp_path)
    assert_same_end(whole, tmp_path)


def test_rank_that_dies_ends_all_machines_in_time(scene_shards: Path, tmp_path: Path) -> None:
    with agents(tmp_path, scene_shards, 0, "die:1:3") as start:
        stays, dies = start(0), start(1)
        assert dies.wait(300) != 0
        assert stays.wait(SECONDS) != 0
    assert "error: another rank of this run has ended" in said(tmp_path)
    assert step_of(tmp_path) == 3


def test_sigterm_saves(scene_shards: Path, tmp_path: Path) -> None:
    """torchrun exits with 1 whatever its processes exit with; Kubernetes starts a failed pod again."""
    with agents(tmp_path, scene_shards, 3) as start:
        both = [start(0), start(1)]
        wait_for(lambda: step_of(tmp_path) >= 2, both[0])
        for agent in both:
            agent.send_signal(signal.SIGTERM)
        codes = [agent.wait(60) for agent in both]
    assert codes == [1, 1], said(tmp_path)
    assert f"stopped at step {step_of(tmp_path)}" in said(tmp_path)
    assert not (tmp_path / "finished.json").exists()
