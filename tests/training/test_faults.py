"""What clusters do to a run: each fault ends in recovery, or in one clear message on rank 0 in time."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hydra import compose, initialize_config_dir
from interruptions import ROOT, options, run, scalars, step_of
from omegaconf import DictConfig
from tensorboard.compat.tensorflow_stub.io import gfile

from odise_pl.checkpoints.callback import SavingError
from odise_pl.data.records import DataError
from odise_pl.distributed.shutdown import Preempted, StopRequest
from odise_pl.errors import UserError
from odise_pl.losses.errors import NonFiniteError
from odise_pl.models.weights import read_checkpoint
from odise_pl.structures import Batch
from odise_pl.training.module import OdiseModule

SECONDS = 10  # from a fault to the end of all processes; not a claim of speed, but of there being no hang
TWO = ["trainer.devices=2", "trainer.strategy=ddp", "validate_every=100", "data.num_workers=0"]


def composed(folder: Path, arguments: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", ["run=test", f"run_dir={folder}", "data.num_workers=0", *arguments])


def faulty(folder: Path, arguments: list[str], faults: str) -> subprocess.CompletedProcess[str]:
    return run(folder, *arguments, script="tests/faulty_train.py", FAULTS=faults, PYTHONPATH=str(ROOT))


def processes_of(folder: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if any(str(folder) in word for word in p.info["cmdline"] or ())]


def all_ended(folder: Path) -> bool:
    limit = time.monotonic() + SECONDS
    while processes_of(folder) and time.monotonic() < limit:
        time.sleep(0.1)
    return not processes_of(folder)


def test_a_rank_that_fails_says_why_on_rank_0_and_one_bad_batch_does_not_matter(
    scene_shards: Path, tmp_path: Path
) -> None:
    """Batch 1 of rank 1 is NaN: all ranks leave the step out. In batch 4 rank 1 fails."""
    done = faulty(tmp_path, options(scene_shards, 9, *TWO), "nan:1:1 fail:1:4")
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert output.count("a step is left out, its gradients are NaN or infinite: image") == 1
    assert "another process of this run has ended" in done.stderr
    assert "rank 1: DataError: shard 7 is gone" in done.stderr
    assert "Traceback" not in output
    assert all_ended(tmp_path)
    assert step_of(tmp_path) == 4
    state = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert list(scalars(tmp_path)["train/steps_left_out"].values()) == [0, 1, 1, 1]
    done = faulty(tmp_path, options(scene_shards, 6, *TWO, "ckpt=last"), "nan:1:1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(scalars(tmp_path)["train/steps_left_out"].values()) == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_dies_the_others_end(scene_shards: Path, tmp_path: Path, rank: int) -> None:
    done = faulty(tmp_path, options(scene_shards, 9, *TWO), f"die:{rank}:3")
    assert done.returncode != 0
    if rank == 1:
        assert "another process of this run has ended or cannot be reached" in done.stderr
        assert "the same command goes on from the last checkpoint" in done.stderr
    assert all_ended(tmp_path)
    assert step_of(tmp_path) == 3


@pytest.mark.slow
def test_a_minute_of_one_rank_holds_the_others_up_and_nothing_else(
    scene_shards: Path, tmp_path: Path
) -> None:
    done = faulty(tmp_path, options(scene_shards, 4, *TWO), "sleep:1:2")
    assert done.returncode == 0, done.stdout + done.stderr
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


def test_what_was_skipped_and_left_out_before_a_stop_still_counts(
    scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are of two batches; the run is stopped after the first batch of the third, which comes again."""
    from odise_pl.training.run import train

    healthy, calls = OdiseModule.training_step, itertools.count()

    def faulty(self: OdiseModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        bad = self.trainer.fit_loop.total_batch_idx in (1, 5)
        return healthy(self, replace(batch, images=batch.images * float("nan")) if bad else batch, batch_idx)

    monkeypatch.setattr(OdiseModule, "training_step", faulty)
    shards = damage_all_but_one(scene_shards, tmp_path / "shards")
    arguments = [*options(shards, 6), f"data.val={scene_shards}", "validate_every=100"]
    train(composed(tmp_path / "whole", arguments))
    monkeypatch.setattr(StopRequest, "anywhere", lambda *_: next(calls) == 5)
    monkeypatch.setattr(StopRequest, "end", lambda self: Preempted(self._trainer))
    with pytest.raises(Preempted):
        train(composed(tmp_path / "stopped", arguments))
    assert step_of(tmp_path / "stopped") == 2
    train(composed(tmp_path / "stopped", [*arguments, "ckpt=last"]))
    whole = scalars(tmp_path / "whole")
    as_text = [json.dumps(curves, sort_keys=True) for curves in (scalars(tmp_path / "stopped"), whole)]
    assert as_text[0] == as_text[1], "NaN is not equal to itself"
    assert list(whole["train/steps_left_out"].values()) == [1, 1, 2, 2, 2, 2]
    skipped = list(whole["data/skipped"].values())
    assert skipped == sorted(skipped)
    assert skipped[1] < skipped[2] < skipped[-1]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    scene_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written for steps 2 and 3 goes to /dev/full; step 4 finds room again."""
    from odise_pl.training.run import train

    place = tmp_path / "checkpoints"
    fill = OdiseModule.training_step

    def filling(self: OdiseModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.global_step in (1, 2):
            (place / f".step_{self.global_step + 1}.ckpt.partial").symlink_to("/dev/full")
        return fill(self, batch, batch_idx)

    monkeypatch.setattr(OdiseModule, "training_step", filling)
    one = ["data.batch_size=2", "validate_every=100"]
    train(composed(tmp_path, options(scene_shards, 4, *one)))
    told = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert len(told) == 2
    for text, step in zip(told, (2, 3), strict=True):
        assert f"the checkpoint of step {step} cannot be written to {place}" in text
        assert "the last one is of step 1" in text
        assert "No space left on device" in text
    assert sorted(path.name for path in place.iterdir()) == ["last.ckpt", "step_1.ckpt", "step_4.ckpt"]

    # the last one of all is an error, and the ones before it are still there
    def filling_the_last(self: OdiseModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.global_step == 5:
            (place / ".step_6.ckpt.partial").symlink_to("/dev/full")
        return fill(self, batch, batch_idx)

    monkeypatch.setattr(OdiseModule, "training_step", filling_the_last)
    with pytest.raises(
        SavingError, match=r"step 6 cannot be written .* the last one is of step 5.*free some"
    ):
        train(composed(tmp_path, options(scene_shards, 6, *one, "ckpt=last")))
    assert step_of(tmp_path) == 5


def test_a_checkpoint_that_cannot_be_renamed_is_said_and_the_next_one_tried(
    scene_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from odise_pl.training.run import train

    in_the_way = tmp_path / "checkpoints" / "step_1.ckpt" / "of_others"
    in_the_way.mkdir(parents=True)
    train(composed(tmp_path, options(scene_shards, 2, "data.batch_size=2", "validate_every=100")))
    told = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert len(told) == 1
    assert "the checkpoint of step 1 cannot be written" in told[0]
    assert in_the_way.is_dir()
    assert step_of(tmp_path) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_curves_and_not_the_run(
    scene_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard finds no room in steps 3 and 4; what is logged after the checkpoint of step 5 is there."""
    from odise_pl.training.run import train

    append, full = gfile.LocalFileSystem.append, [False]

    def filled(self: Any, filename: str, content: bytes, binary: bool = False) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, filename, content, binary)

    def filling(self: OdiseModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        full[0] = self.global_step in (2, 3)
        return train_as_ever(self, batch, batch_idx)

    train_as_ever = OdiseModule.training_step
    monkeypatch.setattr(OdiseModule, "training_step", filling)
    monkeypatch.setattr(gfile.LocalFileSystem, "append", filled)
    train(composed(tmp_path, options(scene_shards, 8, "data.batch_size=2", "validate_every=100")))
    told = [record.getMessage() for record in caplog.records if "the curves in" in record.getMessage()]
    assert told
    assert all(f"{tmp_path}/tensorboard/ cannot be written: [Errno 28]" in text for text in told)
    losses = scalars(tmp_path)["train/loss"]
    assert {0, 6, 7} <= set(losses)
    assert 3 not in losses
    assert step_of(tmp_path) == 8


def test_training_that_diverged_ends_after_five_steps_with_the_images(
    scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from odise_pl.training.run import train

    healthy, before = OdiseModule.training_step, {}

    def broken(self: OdiseModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        before.setdefault(self.global_step, self.model.mask_decoder.query_feat.weight.detach().clone())
        if self.global_step >= 1:
            batch.images.fill_(float("nan"))
        return healthy(self, batch, batch_idx)

    monkeypatch.setattr(OdiseModule, "training_step", broken)
    with pytest.raises(NonFiniteError, match=r"5 steps in a row \(image \d+: .*\); training has diverged"):
        train(composed(tmp_path, options(scene_shards, 9, "data.batch_size=2", "validate_every=100")))
    assert not torch.equal(before[0], before[1])
    assert all(torch.equal(before[1], before[step]) for step in range(2, 6))


def test_out_of_memory_names_what_needs_less(
    scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from odise_pl.training.run import train

    def hungry(self: OdiseModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        return torch.empty(2**55)

    monkeypatch.setattr(OdiseModule, "training_step", hungry)
    with pytest.raises(UserError) as error:
        train(composed(tmp_path, options(scene_shards, 4, "validate_every=100")))
    for setting in ("data.batch_size", "backbone.window_batch", "backbone.checkpoint_activations=true"):
        assert setting in str(error.value)
    assert "ckpt=last" not in str(error.value), "there is no checkpoint yet"


def test_errors_of_users_keep_their_words(
    scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from odise_pl.training.run import train

    def broken(self: OdiseModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        raise DataError("shard 7 is gone")

    monkeypatch.setattr(OdiseModule, "training_step", broken)
    with pytest.raises(DataError, match="shard 7 is gone"):
        train(composed(tmp_path, options(scene_shards, 4, "validate_every=100")))
