from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_stream import data

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.manifest import open_shard_set
from odise_pl.data.records import DataError
from odise_pl.errors import UserError
from odise_pl.structures import Batch

BATCHES = 11  # 23 samples in pairs


class Recorder(LightningModule):
    """Records its batches."""

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


def fit(source: PanopticDataModule, folder: Path, resume: Path | None = None, **options: Any) -> Recorder:
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in options.get("callbacks", [])),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer.fit(model, source, ckpt_path=resume)
    return model


@pytest.mark.parametrize(
    ("hook", "number", "used", "limit"),
    [
        ("on_train_batch_start", 5, 4, {"max_epochs": 2}),  # as if the step then failed
        ("on_train_batch_end", 15, 15, {"max_epochs": -1, "max_steps": 2 * BATCHES}),
        ("on_validation_end", 2, 8, {"max_epochs": 2, "val_check_interval": 4}),
    ],
)
def test_resume_sees_exactly_the_remaining_batches(
    shards: Path, tmp_path: Path, hook: str, number: int, used: int, limit: dict[str, int]
) -> None:
    save = SaveOnce(hook, number, tmp_path / "saved.ckpt")
    whole = fit(data(shards), tmp_path, callbacks=[save], **limit).seen
    assert [step[:2] for step in whole] == [(e, i) for e in range(2) for i in range(BATCHES)]
    loader = data(shards).train_dataloader()
    assert [step[2] for step in whole] == [batch.keys for _ in range(2) for batch in loader]
    resumed = fit(data(shards), tmp_path, tmp_path / "saved.ckpt", **limit).seen
    assert resumed == whole[used:]


def test_step_checkpoints_resume_with_gradient_accumulation(shards: Path, tmp_path: Path) -> None:
    def run(folder: Path, resume: Path | None = None) -> list[Any]:
        every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        source = data(shards, num_workers=2, shuffle_buffer=4, val=None)
        return fit(source, folder, resume, callbacks=[every], max_epochs=2, accumulate_grad_batches=3).seen

    whole = run(tmp_path / "whole")
    assert len(whole) == 2 * BATCHES
    # Steps end after batches 3, 6, 9 and 11 of an epoch.
    assert run(tmp_path / "a", tmp_path / "whole" / "step=2.ckpt") == whole[6:]
    assert run(tmp_path / "b", tmp_path / "whole" / "step=6.ckpt") == whole[BATCHES + 6 :]


def test_resume_with_other_num_workers_warns(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save = SaveOnce("on_train_batch_end", 2, tmp_path / "saved.ckpt")
    fit(data(shards), tmp_path, max_steps=2, callbacks=[save])
    assert "num_workers" not in caplog.text
    fit(data(shards, num_workers=2), tmp_path, tmp_path / "saved.ckpt", max_steps=3)
    assert "num_workers" in caplog.text


def test_several_evaluation_sets(shards: Path, tmp_path: Path) -> None:
    both = data(shards, val={"one": str(shards), "two": str(shards / "dataset.json")}, limit_samples=6)
    assert both.eval_names == ("one", "two")
    model = fit(both, tmp_path, max_epochs=1, num_sanity_val_steps=0)
    assert sorted(model.evaluated) == sorted(2 * [f"{number:012d}" for number in range(1, 7)])
    assert both.vocabulary("one").names == both.eval_vocabulary("two").names == ("square", "disc", "ground")
    others = both.eval_vocabulary("two", {"two": ["a", "b", "c:stuff"]})
    assert others.names == ("a", "b", "c")


def test_epoch_length_may_exceed_the_set(shards: Path) -> None:
    longer = data(shards, epoch_length=50)
    assert len(longer.train_dataloader()) == longer.train_plan().batches == 25


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"augment": "much"}, r"data\.augment"),
        ({"color_jitter": 1.5}, r"data\.color_jitter"),
        ({"words": -1}, r"data\.words"),
    ],
)
def test_invalid_option_is_named(shards: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        data(shards, **options)


def test_missing_option_is_named(shards: Path) -> None:
    with pytest.raises(DataError, match=r"data\.val="):
        data(shards, val=None).vocabulary("val")


def test_error_for_missing_set_names_commands(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/dataset\.json.*odise prepare.*toyworld make"):
        data(tmp_path).setup("fit")


def test_set_without_shards_is_rejected(shards: Path, tmp_path: Path) -> None:
    content = (shards / "dataset.json").read_text()
    nothing: dict[str, Any] = json.loads(content) | {"shards": []}
    nothing["counts"]["samples"] = 0
    for manifest, message in (
        (content, r"train2017-000000\.tar"),
        (json.dumps(nothing), "empty"),
    ):
        (tmp_path / "dataset.json").write_text(manifest)
        with pytest.raises(DataError, match=rf"dataset\.json.*{message}"):
            open_shard_set(tmp_path)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/dataset.json", "pipe:cat /nowhere/dataset.json", "odd://x"]
)
def test_unreachable_set_is_named(url: str) -> None:
    with pytest.raises(DataError) as error:
        open_shard_set(url)
    assert url in str(error.value)
