"""Runs that are stopped from outside, in this process and as programs, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from small_runs import ROOT, SMALL

from odise_pl.models.weights import read_checkpoint
from odise_pl.runs.conf import compose_config
from odise_pl.structures import Batch
from odise_pl.training.module import OdiseModule

OPTIONS = [
    *SMALL,
    "data.num_workers=1",
    "data.augment=lsj",
    "data.image_size=64",
    "data.eval_long_side=64",
    "data.limit_samples=7",
    "model.head.channels=32",
    "model.head.mask_channels=32",
    "model.head.embed_dim=32",
    "trainer.log_every_n_steps=1",
    "+trainer.limit_val_batches=2",
    "callbacks.checkpoint.every_n_train_steps=1",
    "callbacks.pictures.count=1",
    # epochs of 7 batches, steps of 2: the fourth step of an epoch is of a single batch
    "data.batch_size=1",
    "global_batch=2",
    "optimizer.warmup_steps=3",
]


def options(shards: Path, steps: int, *more: str) -> list[str]:
    data = [f"data.train={shards}", f"data.val={shards}"]
    return [*OPTIONS, "validate_every=7", *data, f"trainer.max_steps={steps}", *more]


def train_here(folder: Path, *arguments: str) -> None:
    """Train in this process."""
    from odise_pl.training.run import train

    train(compose_config("train", ["run=test", f"run_dir={folder}", *arguments]))


def before_batches(monkeypatch: pytest.MonkeyPatch, change: Callable[[OdiseModule, Batch], Batch]) -> None:
    """Let ``change`` see and replace every training batch."""
    healthy = OdiseModule.training_step

    def changed(self: OdiseModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        return healthy(self, change(self, batch), batch_idx)

    monkeypatch.setattr(OdiseModule, "training_step", changed)


def command(folder: Path, arguments: list[str], script: str = "train.py") -> list[str]:
    return [sys.executable, str(ROOT / script), f"hydra.run.dir={folder}", *arguments]


def run(
    folder: Path, *arguments: str, script: str = "train.py", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, list(arguments), script),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env=os.environ | environment,
    )


@contextmanager
def started(folder: Path, arguments: list[str], script: str = "train.py") -> Iterator[subprocess.Popen[str]]:
    """A run in the background with its output in ``output.txt``; all of it is killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            command(folder, arguments, script),
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended too soon"
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.01)


def all_ended(folder: Path, seconds: float = 10) -> bool:
    """Whether no process of a run is left."""
    found = psutil.process_iter(["cmdline"])
    left = [p for p in found if any(str(folder) in word for word in p.info["cmdline"] or ())]
    return not psutil.wait_procs(left, timeout=seconds)[1]


def step_of(folder: Path) -> int:
    """Of the newest checkpoint; 0 without."""
    link = folder / "checkpoints" / "last.ckpt"
    return int(link.readlink().stem.removeprefix("step_")) if link.is_symlink() else 0


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows, by name and step; without what depends on the clock and the machine.

    And without the epoch: a validation at the end of an epoch that is made good counts as of the next.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = [n for n in events.Tags()["scalars"] if n.partition("/")[0] not in ("speed", "memory", "epoch")]
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in names}


def assert_same_end(one: Path, other: Path) -> None:
    """Weights and optimiser to the bit."""
    first, second = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (one, other))
    assert first["global_step"] == second["global_step"]
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    for a, b in zip(moments(first), moments(second), strict=True):
        assert torch.equal(a, b)
    assert first["lr_schedulers"] == second["lr_schedulers"]


def moments(checkpoint: dict[str, Any]) -> list[torch.Tensor]:
    state = checkpoint["optimizer_states"][0]["state"]
    return [state[i][name] for i in sorted(state) for name in ("exp_avg", "exp_avg_sq")]
