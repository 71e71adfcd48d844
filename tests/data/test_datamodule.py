from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.manifest import check_shards
from odise_pl.data.records import DataError
from odise_pl.structures import Batch

BATCHES = 11  # 23 samples in pairs


class Recorder(LightningModule):
    """Remembers what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, tuple[str, ...], float]] = []
        self.evaluated: list[str] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, index, batch.keys, batch.images.double().sum().item()))
        return self.weight * batch.images.mean()

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        self.evaluated += batch.keys

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnce(Callback):
    """Saves a checkpoint at the n-th call of a hook."""

    def __init__(self, hook: str, number: int, path: Path) -> None:
        self.left, self.path = number, path
        setattr(self, hook, self._count)

    def _count(self, trainer: Trainer, *_: Any) -> None:
        self.left -= not trainer.sanity_checking
        if self.left == 0 and not self.path.exists():
            trainer.save_checkpoint(self.path)


def module(shards: Path, **options: Any) -> PanopticDataModule:
    defaults = {
        "batch_size": 2,
        "num_workers": 0,
        "image_size": 64,
        "eval_short_side": 32,
        "eval_long_side": 64,
    }
    return PanopticDataModule(train=str(shards), **(defaults | options))


def fit(data: PanopticDataModule, folder: Path, resume: Path | None = None, **options: Any) -> Recorder:
    model = Recorder()
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in options.get("callbacks", []))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=checkpoints,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer.fit(model, data, ckpt_path=resume)
    return model


@pytest.mark.parametrize(
    ("hook", "number", "used"),
    [
        ("on_train_batch_end", 4, 4),
        ("on_train_batch_start", 5, 4),  # as when the step then fails
        ("on_train_batch_end", BATCHES, BATCHES),
        ("on_train_batch_end", 15, 15),
        ("on_validation_end", 1, BATCHES),
        ("on_train_epoch_end", 1, BATCHES),
    ],
)
@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 2 * BATCHES}])
def test_a_resumed_fit_sees_exactly_the_remaining_batches(
    shards: Path, tmp_path: Path, hook: str, number: int, used: int, limit: dict[str, int]
) -> None:
    save = SaveOnce(hook, number, tmp_path / "saved.ckpt")
    whole = fit(module(shards, val=str(shards)), tmp_path, callbacks=[save], **limit).seen
    assert [step[:2] for step in whole] == [(e, i) for e in range(2) for i in range(BATCHES)]
    assert whole[0][2] != whole[BATCHES][2]
    resumed = fit(module(shards, val=str(shards)), tmp_path, tmp_path / "saved.ckpt", **limit).seen
    assert resumed == whole[used:]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_checkpoints_of_steps_resume_under_accumulation(shards: Path, tmp_path: Path, workers: int) -> None:
    def run(folder: Path, resume: Path | None = None) -> list[Any]:
        every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        data = module(shards, num_workers=workers, shuffle_buffer=4)
        options = {"callbacks": [every], "max_epochs": 2, "accumulate_grad_batches": 3}
        return fit(data, folder, resume, **options).seen

    whole = run(tmp_path / "whole")
    assert len(whole) == 2 * BATCHES
    # Steps end after batches 3, 6, 9 and 11 of an epoch.
    assert run(tmp_path / "a", tmp_path / "whole" / "step=2.ckpt") == whole[6:]
    assert run(tmp_path / "b", tmp_path / "whole" / "step=6.ckpt") == whole[BATCHES + 6 :]


def test_validation_in_mid_epoch_does_not_disturb(shards: Path, tmp_path: Path) -> None:
    save = SaveOnce("on_validation_end", 2, tmp_path / "saved.ckpt")
    options = {"max_epochs": 2, "val_check_interval": 4}
    plain = fit(module(shards), tmp_path, max_epochs=2).seen
    with_val = fit(module(shards, val=str(shards)), tmp_path, callbacks=[save], **options)
    assert with_val.seen == plain
    resumed = fit(module(shards, val=str(shards)), tmp_path, tmp_path / "saved.ckpt", **options)
    assert resumed.seen == plain[8:]


def test_resuming_with_other_settings_warns(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save = SaveOnce("on_train_batch_end", 2, tmp_path / "saved.ckpt")
    fit(module(shards), tmp_path, max_steps=3, callbacks=[save])
    with caplog.at_level(logging.WARNING):
        fit(module(shards), tmp_path, tmp_path / "saved.ckpt", max_steps=3)
        assert "other data settings" not in caplog.text
        fit(module(shards, seed=5, num_workers=2), tmp_path, tmp_path / "saved.ckpt", max_steps=3)
    assert "other data settings (seed 0 -> 5, num_workers 1 -> 2)" in caplog.text


def test_several_evaluation_sets(shards: Path, tmp_path: Path) -> None:
    data = module(shards, val={"one": str(shards), "two": str(shards / "dataset.json")}, limit_samples=6)
    assert data.eval_names == ("one", "two")
    assert isinstance(data.val_dataloader(), list)
    model = fit(data, tmp_path, max_epochs=1, num_sanity_val_steps=0)
    assert sorted(model.evaluated) == sorted(2 * [f"{number:012d}" for number in range(1, 7)])
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(again := Recorder(), datamodule=data, verbose=False)
    assert again.evaluated == model.evaluated


def test_training_without_evaluation_set(shards: Path, tmp_path: Path) -> None:
    assert len(fit(module(shards), tmp_path, max_epochs=1).seen) == BATCHES


def test_vocabulary_and_lengths(shards: Path) -> None:
    data = module(shards, val={"one": str(shards)}, epoch_length=50)
    assert data.vocabulary().names == ("square", "disc", "ground")
    assert data.vocabulary("one") == data.vocabulary("train")
    assert len(data.train_dataloader()) == data.train_plan().batches == 25
    assert len(data.val_dataloader()) == 23  # type: ignore[arg-type]


def test_options_that_do_not_exist_are_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="augment is 'much'; there are lsj, none"):
        module(shards, augment="much")
    with pytest.raises(DataError, match=r"data.color_jitter is 1.5; give 0 \(none, as published\) to 1"):
        module(shards, color_jitter=1.5)
    with pytest.raises(DataError, match=r"no data set 'val': give its folder, for example data\.val="):
        module(shards).vocabulary("val")


@pytest.mark.parametrize(("name", "split"), [("my_train", "train2017"), ("my_open", "val2017")])
def test_a_missing_set_ends_in_one_line_before_anything_starts(name: str, split: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    with pytest.raises(DataError) as error:
        module(folder).setup("fit")
    assert str(error.value) == (
        f"no shard set at {folder / 'dataset.json'}; make it with: "
        f"python -m odise_pl.data.prepare coco --root COCO --split {split} --out {folder}"
    )


def test_a_missing_set_of_the_small_world_is_painted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"python -m odise_pl.toyworld.make --out {tmp_path}$"):
        check_shards(tmp_path / "toy_train")


def test_a_set_without_its_shards(shards: Path, tmp_path: Path) -> None:
    content = (shards / "dataset.json").read_text()
    nothing: dict[str, Any] = json.loads(content) | {"shards": []}
    nothing["counts"]["samples"] = 0
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"none of its shards is there .*train2017-000000\.tar"):
        check_shards(tmp_path)
    for spoiled, message in (
        (content[:50], "not the description of a shard set .* delete it and prepare the set again"),
        ("[]", "not the description"),
        (content.replace('"format": 1', '"format": 9'), "format 9, this version reads 1"),
        (json.dumps(nothing), "the shard set is empty"),
    ):
        (tmp_path / "dataset.json").write_text(spoiled)
        with pytest.raises(DataError, match=message):
            check_shards(tmp_path)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/dataset.json", "pipe:cat /nowhere/dataset.json", "odd://x"]
)
def test_an_unreachable_set_is_named(url: str) -> None:
    with pytest.raises(DataError, match="cannot be read") as error:
        check_shards(url)
    assert url in str(error.value)


def test_shard_sets_are_checked_without_torch(shards: Path) -> None:
    code = (
        f"import sys; from odise_pl.data.manifest import check_shards; check_shards({str(shards)!r}); "
        f"sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
