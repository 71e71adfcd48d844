"""``experiment=finetune``: from a checkpoint to a Labelme folder with other classes."""

from __future__ import annotations

from pathlib import Path

import mini_formats as mini
import pytest
import torch
from small_runs import SMALL, composed

from odise_pl.data.prepare.labelme import read_labelme
from odise_pl.data.prepare.packing import prepare
from odise_pl.models.weights import read_checkpoint
from odise_pl.training.run import train


@pytest.mark.slow
def test_finetune_on_labelme_folder(checkpoint: Path, tmp_path: Path) -> None:
    mini.labelme(tmp_path / "root")
    prepare(read_labelme(tmp_path / "root"), tmp_path / "shards")
    small = [item for item in SMALL if not item.startswith("experiment=")]
    settings = ["experiment=[laptop,finetune]", "data=shards", *small, f"init_from={checkpoint}"]
    settings += [f"data.{part}={tmp_path / 'shards'}" for part in ("train", "val")]
    settings += ["data.batch_size=1", "global_batch=2", "trainer.max_steps=2", "validate_every=100"]
    settings += ["optimizer.lr_scale={backbone.captioner: 0}", "callbacks.checkpoint.every_n_train_steps=1"]
    config = composed("train", tmp_path / "run", settings)
    assert config.optimizer.reference_batch == 2
    assert train(config)["val/map"] >= 0
    folder = tmp_path / "run" / "checkpoints"
    before = read_checkpoint(checkpoint)["state_dict"]
    saved = read_checkpoint(folder / "last.ckpt")
    after = saved["state_dict"]
    assert before.keys() == after.keys()  # a frozen part stays in checkpoints
    for name, value in after.items():
        if name.startswith("model.backbone.captioner"):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(
        after["model.mask_decoder.query_feat.weight"], before["model.mask_decoder.query_feat.weight"]
    )
    assert [c["name"] for c in saved["odise"]["vocabulary"]["categories"]] == ["cat", "dog"]
    # stopped after a step and repeated, it ends with the same weights
    config = composed("train", tmp_path / "again", settings)
    middle = tmp_path / "again" / "checkpoints" / "step_1.ckpt"
    middle.parent.mkdir(parents=True)
    middle.write_bytes((folder / "step_1.ckpt").read_bytes())
    (middle.parent / "last.ckpt").symlink_to(middle.name)
    train(config)
    resumed = read_checkpoint(middle.parent / "last.ckpt")["state_dict"]
    assert all(torch.equal(resumed[name], after[name]) for name in after)
