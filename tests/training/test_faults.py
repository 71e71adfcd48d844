"""Faults of clusters: each ends in recovery, or in one clear message and no process that hangs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import ROOT, all_ended, before_batches, options, run, scalars, step_of, train_here
from tensorboard.compat.tensorflow_stub.io import gfile

from odise_pl.checkpoints import callback
from odise_pl.checkpoints.callback import SavingError
from odise_pl.distributed.shutdown import Preempted
from odise_pl.losses.errors import NonFiniteError
from odise_pl.models.weights import read_checkpoint
from odise_pl.structures import Batch
from odise_pl.training.faults import OutOfMemoryError
from odise_pl.training.module import OdiseModule

TWO = ["trainer.devices=2", "trainer.strategy=ddp", "validate_every=100", "data.num_workers=0"]
ONE = ["data.batch_size=2", "validate_every=100", "data.num_workers=0"]


def run_with(faults: str, folder: Path, arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of two ranks in which something goes wrong."""
    done = run(folder, *arguments, script="tests/faulty_train.py", FAULTS=faults, PYTHONPATH=str(ROOT))
    return done.returncode, done.stdout + done.stderr


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


@pytest.mark.slow
def test_slow_rank_only_delays_the_others(scene_shards: Path, tmp_path: Path) -> None:
    code, output = run_with("sleep:1:2", tmp_path, options(scene_shards, 4, *TWO))
    assert code == 0, output
    assert step_of(tmp_path) == 4


def damage_all_but_one(shards: Path, folder: Path) -> Path:
    """A copy of a set in which one image alone can be decoded."""
    copied = Path(shutil.copytree(shards, folder))
    for number, path in enumerate(sorted(copied.glob("*.tar"))):
        with tarfile.open(path) as tar:
            images = [member for member in tar if member.name.endswith(".jpg")]
        with path.open("r+b") as file:
            for member in images[number == 0 :]:
                file.seek(member.offset_data)
                file.write(bytes(member.size))
    return copied


def test_counters_continue_in_a_resumed_run(
    scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of damaged samples and skipped steps. A signal arrives in the first of the two batches of step 3."""
    signals = {4: signal.SIGTERM}

    def break_some(module: OdiseModule, batch: Batch) -> Batch:
        number = module.trainer.fit_loop.total_batch_idx
        if "stopped" in module.trainer.default_root_dir and number in signals:
            os.kill(os.getpid(), signals.pop(number))
        return replace(batch, images=batch.images * float("nan")) if number in (1, 5) else batch

    before_batches(monkeypatch, break_some)
    shards = damage_all_but_one(scene_shards, tmp_path / "shards")
    arguments = [*options(shards, 6), f"data.val={scene_shards}", "validate_every=100", "data.num_workers=0"]
    train_here(tmp_path / "whole", *arguments)
    with pytest.raises(Preempted):
        train_here(tmp_path / "stopped", *arguments)
    assert step_of(tmp_path / "stopped") == 2
    train_here(tmp_path / "stopped", *arguments, "ckpt=last")
    whole = scalars(tmp_path / "whole")
    as_text = [json.dumps(curves, sort_keys=True) for curves in (scalars(tmp_path / "stopped"), whole)]
    assert as_text[0] == as_text[1], "NaN is not equal to itself"
    assert list(whole["train/steps_skipped"].values()) == [1, 1, 2, 2, 2, 2]
    skipped = list(whole["data/skipped"].values())
    assert skipped == sorted(skipped)
    assert skipped[1] < skipped[2] < skipped[-1]


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]


def test_full_disk_costs_a_checkpoint_but_not_the_run(
    scene_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room in steps 2 and 3, and again at the end."""
    write, place = callback.atomic_write, tmp_path / "checkpoints"

    def fill(module: OdiseModule, batch: Batch) -> Batch:
        # while a step is computed, the one before is saved
        monkeypatch.setattr(callback, "atomic_write", full if module.global_step in (1, 2, 5) else write)
        return batch

    before_batches(monkeypatch, fill)
    train_here(tmp_path, *options(scene_shards, 4, *ONE))
    for text, step in zip(errors(caplog), (2, 3), strict=True):
        assert f"step {step} cannot be written to {place} (the last one is of step 1)" in text
        assert "No space left on device" in text
    assert sorted(path.name for path in place.iterdir()) == ["last.ckpt", "step_1.ckpt", "step_4.ckpt"]
    with pytest.raises(SavingError, match=r"step 6 cannot be written .* step 5\): .*No space left"):
        train_here(tmp_path, *options(scene_shards, 6, *ONE, "ckpt=last"))
    assert step_of(tmp_path) == 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_costs_curves_but_not_the_run(
    scene_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard finds no room in steps 3 and 4; what is logged after the checkpoint of step 5 is there."""
    append = gfile.LocalFileSystem.append

    def fill(module: OdiseModule, batch: Batch) -> Batch:
        monkeypatch.setattr(gfile.LocalFileSystem, "append", full if module.global_step in (2, 3) else append)
        return batch

    before_batches(monkeypatch, fill)
    train_here(tmp_path, *options(scene_shards, 8, *ONE))
    assert errors(caplog)
    assert all(f"{tmp_path}/tensorboard/ cannot be written: [Errno 28]" in text for text in errors(caplog))
    losses = scalars(tmp_path)["train/loss"]
    assert {0, 6, 7} <= set(losses)
    assert 3 not in losses
    assert step_of(tmp_path) == 8


def test_diverged_training_ends_after_five_steps_with_the_images(
    scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[int, torch.Tensor] = {}

    def spoil(module: OdiseModule, batch: Batch) -> Batch:
        before.setdefault(module.global_step, module.model.mask_decoder.query_feat.weight.detach().clone())
        return replace(batch, images=batch.images * float("nan")) if module.global_step else batch

    before_batches(monkeypatch, spoil)
    with pytest.raises(NonFiniteError, match=r"5 steps in a row \(image \d+: .*optimizer\.lr"):
        train_here(tmp_path, *options(scene_shards, 9, *ONE))
    assert not torch.equal(before[0], before[1])
    assert all(torch.equal(before[1], before[step]) for step in range(2, 6))


def test_out_of_memory_names_settings_that_need_less(
    scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_batches(monkeypatch, lambda module, batch: replace(batch, images=torch.empty(2**55)))
    with pytest.raises(OutOfMemoryError) as error:
        train_here(tmp_path, *options(scene_shards, 4, *ONE))
    for setting in ("data.batch_size", "backbone.window_batch", "backbone.checkpoint_activations=true"):
        assert setting in str(error.value)
