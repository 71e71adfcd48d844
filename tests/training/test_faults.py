"""Faults of clusters: each ends in recovery, or in one clear message and no process that hangs."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interruptions import ROOT, all_ended, before_batches, options, run, scalars, step_of, train_here
from tensorboard.compat.tensorflow_stub.io import gfile

from odise_pl.checkpoints import saving
from odise_pl.checkpoints.saving import SavingError
from odise_pl.models.weights import read_checkpoint
from odise_pl.structures import Batch
from odise_pl.training.faults import FaultError, explain_faults
from odise_pl.training.module import OdiseModule

TWO = ["trainer.devices=2", "trainer.strategy=ddp", "validate_every=100", "data.num_workers=0"]
ONE = ["data.batch_size=2", "validate_every=100", "data.num_workers=0"]


def run_with(faults: str, folder: Path, arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of two ranks in which something goes wrong."""
    done = run(folder, *arguments, script="tests/faulty_train.py", FAULTS=faults, PYTHONPATH=str(ROOT))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_failing_rank_ends_all_and_one_bad_batch_is_skipped(scene_shards: Path, tmp_path: Path) -> None:
    """Batch 1 of rank 1 is NaN: all ranks skip the step. In batch 4 rank 1 fails."""
    code, output = run_with("nan:1:1 fail:1:4", tmp_path, options(scene_shards, 9, *TWO))
    assert code != 0
    assert output.count("a step with non-finite gradients is skipped: image") == 1
    assert "error: shard 7 is gone" in output
    assert "Traceback" not in output
    assert all_ended(tmp_path)
    assert step_of(tmp_path) == 4
    state = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert list(scalars(tmp_path)["train/steps_skipped"].values()) == [0, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_all(scene_shards: Path, tmp_path: Path, rank: int) -> None:
    code, output = run_with(f"die:{rank}:3", tmp_path, options(scene_shards, 9, *TWO))
    assert code != 0, output
    assert all_ended(tmp_path)
    assert step_of(tmp_path) == 3


@pytest.mark.parametrize(
    ("error", "ranks", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 1, "data.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "backbone.window_batch=1"),
        (MemoryError(), 2, "backbone.checkpoint_activations=true"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 1, "data.num_workers=0"),
        (RuntimeError("[gloo] Connection closed by peer"), 2, "another rank"),
        (torch.distributed.DistBackendError("timed out"), 2, "another rank"),
    ],
)
def test_errors_of_libraries_are_explained(error: Exception, ranks: int, advice: str) -> None:
    trainer: Any = SimpleNamespace(world_size=ranks)
    with pytest.raises(FaultError, match=advice), explain_faults(trainer):
        raise error
    with pytest.raises(RuntimeError, match="shape"), explain_faults(trainer):
        raise RuntimeError("shape")


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_costs_checkpoints_and_curves_but_not_the_run(
    scene_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for the checkpoints and curves of steps 2 and 3, and again at the end."""
    write, append, place = saving.atomic_write, gfile.LocalFileSystem.append, tmp_path / "checkpoints"

    def fill(module: OdiseModule, batch: Batch) -> Batch:
        # while a step is computed, the one before is saved
        is_full = module.global_step in (1, 2, 7)
        monkeypatch.setattr(saving, "atomic_write", full if is_full else write)
        monkeypatch.setattr(gfile.LocalFileSystem, "append", full if is_full else append)
        return batch

    before_batches(monkeypatch, fill)
    train_here(tmp_path, *options(scene_shards, 6, *ONE, "callbacks.checkpoint.keep=5"))
    errors = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
    assert any(f"{tmp_path}/tensorboard/ cannot be written: [Errno 28]" in text for text in errors)
    for step in (2, 3):
        expected = f"step {step} cannot be written to {place} (the last one is of step 1)"
        assert any(expected in text for text in errors)
    found = sorted(path.name for path in place.iterdir())
    assert found == ["last.ckpt", *(f"step_{step}.ckpt" for step in (1, 4, 5, 6))]
    losses = scalars(tmp_path)["train/loss"]
    assert {0, 4, 5} <= set(losses)
    assert 2 not in losses
    with pytest.raises(SavingError, match=r"step 8 cannot be written .* step 7\): .*No space left"):
        train_here(tmp_path, *options(scene_shards, 8, *ONE, "ckpt=last"))
    assert step_of(tmp_path) == 7
