"""Training that dies, is stopped by a signal, or finds a damaged checkpoint, and resumes."""

from __future__ import annotations

import random
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from interruptions import (
    all_ended,
    assert_same_end,
    before_batches,
    kill_at_random,
    options,
    run,
    scalars,
    started,
    step_of,
    train_here,
    wait_for,
)

from odise_pl.checkpoints.files import as_option, saved_checkpoints
from odise_pl.checkpoints.reading import describe_resumable
from odise_pl.models.weights import WeightsError, read_checkpoint
from odise_pl.structures import Batch
from odise_pl.training.module import OdiseModule

STEPS = 12  # three epochs of seven batches and four steps; the eighth step is validated


@pytest.fixture(scope="module")
def arguments(scene_shards: Path) -> list[str]:
    return options(scene_shards, STEPS)


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train_here(folder, *arguments)
    return folder


@pytest.fixture(scope="module")
def half(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped with SIGTERM in the middle."""
    folder = tmp_path_factory.mktemp("half")
    with started(folder, arguments) as process:
        wait_for(lambda: step_of(folder) >= 3, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, (folder / "output.txt").read_text()
    return folder


@pytest.fixture
def copied(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "run", symlinks=True))


def test_sigterm_saves_and_the_resumed_run_ends_as_undisturbed(
    copied: Path, arguments: list[str], undisturbed: Path
) -> None:
    output = (copied / "output.txt").read_text()
    assert f"stopped at step {step_of(copied)}" in output
    for unwanted in ("Traceback", "Tip:", "GPU available", "Warning", "`Trainer.fit`"):
        assert unwanted not in output
    train_here(copied, *arguments, "ckpt=last")
    assert_same_end(undisturbed, copied)
    assert scalars(copied) == scalars(undisturbed)
    assert len(list((copied / "checkpoints").iterdir())) == 3, "two checkpoints and the link"


def test_death_at_the_ends_of_epochs_and_after_validation_changes_nothing(
    arguments: list[str], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random points depend on epoch and batch. The last checkpoint before batch 14 is not validated yet."""
    deaths = [14, 7]

    def die(module: OdiseModule, batch: Batch) -> Batch:
        if deaths and module.trainer.fit_loop.total_batch_idx == deaths[-1]:
            raise RuntimeError(f"died at {deaths.pop()}")
        return batch

    before_batches(monkeypatch, die)
    with pytest.raises(RuntimeError, match="died at 7"):
        train_here(tmp_path, *arguments)
    assert step_of(tmp_path) == 4
    with pytest.raises(RuntimeError, match="died at 14"):
        train_here(tmp_path, *arguments, "ckpt=last")
    assert step_of(tmp_path) == 8
    train_here(tmp_path, *arguments, "ckpt=last")
    assert_same_end(undisturbed, tmp_path)
    assert scalars(tmp_path) == scalars(undisturbed)


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(scene_shards: Path, tmp_path: Path) -> None:
    arguments, killed, whole = options(scene_shards, 60), tmp_path / "killed", tmp_path / "undisturbed"
    train_here(whole, *arguments)
    chance, steps = random.Random(20), []
    while len(steps) < 10:
        step = kill_at_random(killed, arguments, chance)
        assert step is not None, f"finished after {len(steps)} kills: the run is too short for this test"
        steps.append(step)
    assert steps == sorted(steps)
    assert steps[-1] > 0
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
    assert describe_resumable(last).step == step_of(half)
    spoil(last, damage)
    with pytest.raises(WeightsError) as refused:
        describe_resumable(last)
    assert str(last) in str(refused.value)
    assert str(refused.value).endswith(as_option(before))
    spoil(before, damage)
    with pytest.raises(WeightsError) as refused:
        describe_resumable(last)
    assert as_option(before) not in str(refused.value)


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
