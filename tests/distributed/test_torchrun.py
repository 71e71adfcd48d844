"""Two machines under torchrun: a rank that dies, a machine that is replaced, SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
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
            kill(agent)


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def kill(agent: Agent) -> None:
    """As when a machine is switched off: torchrun and what it has started."""
    if agent.poll() is None:
        for process in (*psutil.Process(agent.pid).children(recursive=True), agent):
            process.kill()
        agent.wait()


def said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("machine_*.txt")))


@pytest.fixture(scope="module")
def undisturbed(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes of one machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder, *options(scene_shards, STEPS, *EACH, "trainer.devices=2", "trainer.strategy=ddp"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_rank_that_dies_is_started_again_with_all_others(
    scene_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with agents(tmp_path, scene_shards, 1, "die_first:1:3") as start:
        codes = [agent.wait(300) for agent in [start(0), start(1)]]
    assert codes == [0, 0], said(tmp_path)
    assert "it goes on from step_3.ckpt" in said(tmp_path)
    assert_same_end(undisturbed, tmp_path)


def test_a_machine_that_is_replaced_joins_again(
    scene_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with agents(tmp_path, scene_shards, 3) as start:
        stays, goes = start(0), start(1)
        wait_for(lambda: step_of(tmp_path) >= 2, goes)
        kill(goes)
        comes = start(1)
        codes = [agent.wait(300) for agent in (stays, comes)]
    assert codes == [0, 0], said(tmp_path)
    assert "it goes on from step_" in said(tmp_path)
    assert_same_end(undisturbed, tmp_path)


def test_without_restarts_a_rank_that_dies_ends_all_machines_in_time(
    scene_shards: Path, tmp_path: Path
) -> None:
    with agents(tmp_path, scene_shards, 0, "die:1:3") as start:
        stays, dies = start(0), start(1)
        assert dies.wait(300) != 0
        began = time.monotonic()
        assert stays.wait(SECONDS) != 0
    assert time.monotonic() - began < SECONDS
    assert "another process of this run has ended or cannot be reached" in said(tmp_path)
    assert "the same command goes on from the last checkpoint" in said(tmp_path)
    assert step_of(tmp_path) == 3


def test_asked_to_end_it_saves_and_torchrun_ends_with_1(scene_shards: Path, tmp_path: Path) -> None:
    """With 1 whatever its processes end with; Kubernetes starts a pod again that has failed."""
    with agents(tmp_path, scene_shards, 3) as start:
        both = [start(0), start(1)]
        wait_for(lambda: step_of(tmp_path) >= 2, both[0])
        for agent in both:
            agent.send_signal(signal.SIGTERM)
        codes = [agent.wait(60) for agent in both]
    assert codes == [1, 1], said(tmp_path)
    assert f"asked to end at step {step_of(tmp_path)}: the same command goes on" in said(tmp_path)
    assert not (tmp_path / "finished.json").exists()
