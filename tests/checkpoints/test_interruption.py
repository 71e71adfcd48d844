"""Training that dies, is stopped by a signal, or finds a damaged checkpoint, and resumes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interruptions import (
    all_ended,
    assert_same_end,
    before_batches,
    options,
    run,
    scalars,
    started,
    step_of,
    train_here,
    wait_for,
)

from odise_pl.checkpoints.files import saved_checkpoints
from odise_pl.checkpoints.metadata import check_resumable
from odise_pl.checkpoints.saving import Checkpoints
from odise_pl.distributed.shutdown import Preempted
from odise_pl.models.weights import WeightsError, read_checkpoint
from odise_pl.structures import Batch
from odise_pl.training.module import OdiseModule

STEPS = 12  # three epochs of seven batches and four steps; the eighth step is validated
STOPPED = 5


@pytest.fixture(scope="module")
def arguments(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a run on a set in which two images are damaged."""
    shards = Path(shutil.copytree(scene_shards, tmp_path_factory.mktemp("damaged") / "shards"))
    (path,) = shards.glob("*.tar")
    with tarfile.open(path) as tar:
        images = [member for member in tar if member.name.endswith(".jpg")]
    with path.open("r+b") as file:
        for member in images[2:4]:
            file.seek(member.offset_data)
            file.write(bytes(member.size))
    return [*options(shards, STEPS), f"data.val={scene_shards}"]


def number_of(module: OdiseModule) -> int:
    return module.trainer.fit_loop.total_batch_idx


def spoil_some(module: OdiseModule, batch: Batch) -> Batch:
    """Two steps are skipped, the first and the third."""
    return replace(batch, pixels=batch.images * float("nan")) if number_of(module) in (1, 5) else batch


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        before_batches(patch, spoil_some)
        train_here(folder, *arguments)
    return folder


def die_at(number: int, folder: Path, arguments: list[str]) -> None:
    """Train, resuming if there is a checkpoint, until an error in this batch."""

    def die(module: OdiseModule, batch: Batch) -> Batch:
        if number_of(module) == number:
            raise RuntimeError("died")
        return spoil_some(module, batch)

    with pytest.MonkeyPatch.context() as patch:
        before_batches(patch, die)
        with pytest.raises(RuntimeError, match="died"):
            train_here(folder, *arguments)


@pytest.fixture(scope="module")
def half(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run. It dies at the end of the first epoch, and resumes.

    Then SIGTERM arrives in the first of the two batches of the sixth step.
    """
    folder = tmp_path_factory.mktemp("half")

    def stop(module: OdiseModule, batch: Batch) -> Batch:
        if number_of(module) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return spoil_some(module, batch)

    die_at(7, folder, arguments)
    assert step_of(folder) == 4
    with pytest.MonkeyPatch.context() as patch:
        before_batches(patch, stop)
        with pytest.raises(Preempted):
            train_here(folder, *arguments)
    assert step_of(folder) == STOPPED
    return folder


@pytest.fixture
def copied(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "run", symlinks=True))


def test_run_that_dies_and_is_stopped_resumes_and_ends_as_undisturbed(
    copied: Path, arguments: list[str], undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random points depend on epoch and batch. The last checkpoint before batch 14 is not validated yet."""
    die_at(14, copied, arguments)
    assert step_of(copied) == 8
    before_batches(monkeypatch, spoil_some)
    train_here(copied, *arguments)
    assert_same_end(undisturbed, copied)
    counters = scalars(copied)
    # as text: NaN is not equal to itself
    assert json.dumps(counters, sort_keys=True) == json.dumps(scalars(undisturbed), sort_keys=True)
    assert len(list((copied / "checkpoints").iterdir())) == 3, "two checkpoints and the link"
    assert list(counters["train/steps_skipped"].values()) == [1.0, 1.0] + [2.0] * (STEPS - 2)
    skipped = list(counters["data/skipped"].values())
    assert skipped == sorted(skipped)
    assert 0 < skipped[STOPPED] < skipped[-1]


def test_trial_run_writes_no_checkpoint(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(fast_dev_run=1)
    assert Checkpoints(str(tmp_path / "checkpoints")).save(trainer) == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sigterm_ends_the_program_with_its_code_and_a_clean_console(
    scene_shards: Path, tmp_path: Path
) -> None:
    with started(tmp_path, options(scene_shards, 60)) as process:
        wait_for(lambda: step_of(tmp_path) >= 3, process)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    output = (tmp_path / "output.txt").read_text()
    assert code == 143, output
    assert f"stopped at step {step_of(tmp_path)}" in output
    for unwanted in ("Traceback", "Tip:", "GPU available", "Warning", "`Trainer.fit`"):
        assert unwanted not in output


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(scene_shards: Path, tmp_path: Path) -> None:
    arguments, killed, whole = options(scene_shards, 60), tmp_path / "killed", tmp_path / "undisturbed"
    train_here(whole, *arguments)
    chance = random.Random(20)
    for kill in range(10):
        before = step_of(killed)
        with started(killed, arguments) as process:
            if kill % 2:  # while it starts
                time.sleep(chance.uniform(0, 8))
            else:
                wait_for(lambda before=before: step_of(killed) > before, process)
                time.sleep(chance.uniform(0, 1))
            assert process.poll() is None, "the run is too short for this test"
            os.killpg(process.pid, signal.SIGKILL)
        assert step_of(killed) >= before
    assert step_of(killed) > 0
    done = run(killed, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_end(whole, killed)
    assert scalars(killed) == scalars(whole)
    assert not list((killed / "checkpoints").glob(".*"))
    assert len(list((killed / "checkpoints").glob("step_*.ckpt"))) == 2


@pytest.mark.parametrize("damage", ["truncated", "zeros", "foreign", "weights"])
def test_damaged_checkpoint_is_refused_and_the_one_before_offered(
    half: Path, tmp_path: Path, damage: str
) -> None:
    place = Path(shutil.copytree(half / "checkpoints", tmp_path / "checkpoints", symlinks=True))
    last, before = saved_checkpoints(place)
    assert check_resumable(last) == step_of(half)
    spoil(last, damage)
    with pytest.raises(WeightsError) as refused:
        check_resumable(last)
    assert str(last) in str(refused.value)
    assert f"{before} of step {STOPPED - 1} is intact" in str(refused.value)
    spoil(before, damage)
    with pytest.raises(WeightsError) as refused:
        check_resumable(last)
    assert "intact" not in str(refused.value)


def spoil(path: Path, damage: str) -> None:
    if damage == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif damage == "zeros":  # as a disk leaves them that lost a sector
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda record: record.file_size)
        middle = largest.header_offset + largest.file_size // 2
        with path.open("r+b") as file:
            file.seek(middle)
            file.write(bytes(512))
    elif damage == "foreign":
        torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, path)
    else:
        other = path.with_suffix(".part")  # tensors are read from the file when they are needed
        torch.save({"state_dict": read_checkpoint(path)["state_dict"]}, other)
        other.replace(path)


@pytest.mark.slow
def test_two_ranks_resume_from_one_and_stop_together(half: Path, copied: Path, arguments: list[str]) -> None:
    """From one rank of two batches a step to two ranks of one; Ctrl-C reaches the first alone."""
    before = step_of(copied)
    with started(copied, [*arguments, "trainer.devices=2", "trainer.strategy=ddp"]) as process:
        wait_for(lambda: step_of(copied) > before, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (copied / "output.txt").read_text()
    assert all_ended(copied)
    output = (copied / "output.txt").read_text()
    assert "2 images per batch instead of 1" in output
    one, other = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (half, copied))
    steps = other["global_step"]
    assert steps > one["global_step"] == before
    assert other["lr_schedulers"][0]["last_epoch"] == steps
    # an epoch of seven images has four steps on one rank, the last of which is of one image, and three on two
    epoch, place = divmod(before, 4)
    batches = other["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    assert batches == epoch * 3 + place + steps - before
