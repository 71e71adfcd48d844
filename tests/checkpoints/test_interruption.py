"""Training that is killed, asked to end, or finds a damaged checkpoint, and the same command again."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from interruptions import (
    ROOT,
    assert_same_end,
    kill_at_random,
    options,
    run,
    scalars,
    started,
    step_of,
    wait_for,
)

from odise_pl.checkpoints.files import as_option, saved_checkpoints
from odise_pl.checkpoints.reading import description_of
from odise_pl.models.weights import WeightsError, read_checkpoint

STEPS = 18


@pytest.fixture(scope="module")
def arguments(scene_shards: Path) -> list[str]:
    return options(scene_shards, STEPS)


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def half(undisturbed: Path, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped with SIGTERM in the middle."""
    folder = tmp_path_factory.mktemp("half")
    with started(folder, arguments) as process:
        wait_for(lambda: step_of(folder) >= 3, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, (folder / "output.txt").read_text()
    return folder


def test_killed_again_and_again_ends_as_undisturbed(
    arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    assert_killed_is_as_undisturbed(tmp_path, arguments, undisturbed, 2)


@pytest.mark.slow
def test_killed_twenty_times_ends_as_undisturbed(scene_shards: Path, tmp_path: Path) -> None:
    long = options(scene_shards, 120)
    whole = run(tmp_path / "undisturbed", *long)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert_killed_is_as_undisturbed(tmp_path / "killed", long, tmp_path / "undisturbed", 20)


def assert_killed_is_as_undisturbed(
    folder: Path, arguments: list[str], undisturbed: Path, times: int
) -> None:
    chance, steps = random.Random(times), []
    while len(steps) < times:
        step = kill_at_random(folder, arguments, chance)
        assert step is not None, f"finished after {len(steps)} kills: the run is too short for this test"
        steps.append(step)
    print("killed after steps", steps)
    assert steps == sorted(steps)
    assert steps[-1] > 0
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_end(undisturbed, folder)
    assert scalars(folder) == scalars(undisturbed)
    assert not list((folder / "checkpoints").glob(".*"))
    assert len(list((folder / "checkpoints").glob("step_*.ckpt"))) == 2


def test_killed_at_the_end_of_one_epoch_after_another_it_keeps_count_of_them(
    arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    """Random points are drawn by epoch and batch: with an epoch lost, those of later epochs are others."""
    for batch, step in ((7, 4), (14, 8), (28, 16)):
        died = run_to_death(tmp_path, arguments, batch)
        assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
        assert step_of(tmp_path) == step
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_end(undisturbed, tmp_path)
    assert scalars(tmp_path) == scalars(undisturbed)


def run_to_death(folder: Path, arguments: list[str], batch: int) -> subprocess.CompletedProcess[str]:
    faults = {"FAULTS": f"die:0:{batch}", "PYTHONPATH": str(ROOT)}
    return run(folder, *arguments, script="tests/faulty_train.py", **faults)


def test_a_validation_that_was_cut_off_is_made_good(
    arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    """The last checkpoint before batch 28 is of a step that is validated before it, the second of the run."""
    died = run_to_death(tmp_path, arguments, 28)
    assert died.returncode == -signal.SIGKILL
    assert step_of(tmp_path) == 16
    done = run(tmp_path, *arguments, "trainer.log_every_n_steps=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert scalars(tmp_path) == scalars(undisturbed)


def test_asked_to_end_it_saves_and_goes_on(
    half: Path, arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    output = (half / "output.txt").read_text()
    assert "asked to end at step" in output
    assert "Traceback" not in output
    folder = Path(shutil.copytree(half, tmp_path / "run", symlinks=True))
    done = run(folder, *(a.replace(str(half), str(folder)) for a in arguments))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it goes on from step_" in done.stdout
    assert_same_end(undisturbed, folder)
    assert scalars(folder) == scalars(undisturbed)
    finished = run(folder, *arguments)
    assert finished.returncode == 0
    assert "is finished: skipped" in finished.stdout


def test_everything_that_resuming_needs_is_saved(half: Path) -> None:
    checkpoint = read_checkpoint(half / "checkpoints" / "last.ckpt")
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "PanopticDataModule"} <= set(
        checkpoint
    )


@pytest.mark.parametrize("damage", ["truncated", "zeros", "foreign", "weights"])
def test_a_checkpoint_that_cannot_be_used_is_refused_and_the_one_before_is_offered(
    half: Path, tmp_path: Path, damage: str
) -> None:
    place = Path(shutil.copytree(half / "checkpoints", tmp_path / "checkpoints", symlinks=True))
    last, before = saved_checkpoints(place)
    assert description_of(last).step == step_of(half)
    spoil(last, damage)
    with pytest.raises(WeightsError) as refused:
        description_of(last)
    cause = {
        "truncated": "is damaged",
        "zeros": "is damaged (checksum of",
        "foreign": "is neither",
        "weights": "no state of training",
    }[damage]
    assert f"{last} " in str(refused.value)
    assert cause in str(refused.value)
    assert str(refused.value).endswith(f"is whole, go on from it with {as_option(before)}")
    spoil(before, damage)
    with pytest.raises(WeightsError) as refused:
        description_of(last)
    assert "go on from" not in str(refused.value)


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


def test_it_goes_on_with_other_ranks_which_end_together(
    half: Path, arguments: list[str], tmp_path: Path
) -> None:
    """From one rank of two batches a step to two ranks of one."""
    folder = Path(shutil.copytree(half, tmp_path / "run", symlinks=True))
    before = step_of(folder)
    with started(folder, [*arguments, "trainer.devices=2", "trainer.strategy=ddp"]) as process:
        wait_for(lambda: step_of(folder) > before, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, (folder / "output.txt").read_text()
    output = (folder / "output.txt").read_text()
    assert "2 images per batch instead of 1: 1 batches make a step now" in output
    assert "devices 1 -> 2" in output
    one, other = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (half, folder))
    steps = other["global_step"]
    assert steps > one["global_step"] == before
    assert other["lr_schedulers"][0]["last_epoch"] == steps
    # an epoch of seven images has four steps on one rank, the last of which is of one image, and three on two
    epoch, place = divmod(before, 4)
    batches = other["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    assert batches == epoch * 3 + place + steps - before
