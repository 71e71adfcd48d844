"""The caption model: what a step computes, and training."""

from __future__ import annotations

from pathlib import Path

import parallel_cases
import pytest
import tiny_models
import torch
from parallel_cases import BALL, DOG, batch, same_points
from scenes import CAPTIONS, make_scenes
from shard_members import unlabel
from small_runs import SMALL, composed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from odise_pl.training.module import OdiseModule, StepLosses

STEPS = 20
FIT = [
    "model=odise_caption",
    "criterion.num_points=512",
    "validate_every=1000",
    "data.epoch_length=400",
    "data.batch_size=2",
    "global_batch=2",
    "optimizer.reference_batch=2",
    "trainer.log_every_n_steps=1",
    f"trainer.max_steps={STEPS}",
    "+trainer.limit_val_batches=1",
    "~callbacks.report",
    "~callbacks.pictures",
]
PROJECTION = "model.text_projection.proj.weight"


@pytest.fixture(scope="module")
def model() -> OdiseModule:
    return parallel_cases.module("caption")


def gradients(model: OdiseModule, losses: StepLosses) -> dict[str, Tensor]:
    """Finite gradients of all trained parameters."""
    model.zero_grad()
    losses.total.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def test_total_is_the_sum_over_outputs_and_every_label_is_the_object_class(model: OdiseModule) -> None:
    losses = model.losses(batch(), same_points)
    named = losses.named()
    outputs = tiny_models.HEAD.layers + 1
    assert len(losses.masks) == len(losses.grounding) == outputs
    assert len(named) == 4 * outputs
    assert {"grounding", "grounding_0", "mask", "classification_2"} <= named.keys()
    torch.testing.assert_close(losses.total, sum(named.values(), torch.zeros(())))
    relabelled = batch()
    for target in relabelled.targets:
        target.labels.fill_(2)
    torch.testing.assert_close(model.losses(relabelled, same_points).total, losses.total)


def test_images_without_words_have_no_grounding_loss(model: OdiseModule) -> None:
    losses = model.losses(batch(words=((),) * 4), same_points)
    assert [loss.item() for loss in losses.grounding] == [0.0] * len(losses.grounding)
    assert gradients(model, losses)[PROJECTION].abs().sum() == 0
    mixed = model.losses(batch(words=(DOG, (), BALL, ())), same_points)
    assert gradients(model, mixed)[PROJECTION].abs().sum() > 0
    assert min(loss.item() for loss in mixed.grounding) > 0


def test_unlabelled_images_are_ignored_by_mask_losses(model: OdiseModule) -> None:
    some = model.losses(batch(labelled=(True, True, False, False)), same_points).masks
    alone = model.losses(batch(images=slice(2), labelled=(True,) * 4), same_points).masks
    for one, other in zip(some, alone, strict=True):
        for name, value in vars(one).items():
            torch.testing.assert_close(value, getattr(other, name), rtol=1e-5, atol=1e-6)


def test_without_labels_only_words_teach(model: OdiseModule) -> None:
    losses = model.losses(batch(labelled=(False,) * 4), same_points)
    assert all(term.item() == 0 for loss in losses.masks for term in vars(loss).values())
    assert gradients(model, losses)[PROJECTION].abs().sum() > 0


@pytest.mark.slow
def test_losses_decrease(tmp_path: Path) -> None:
    """On scenes of which two have no caption, one caption has no noun, and one image has no labels."""
    from odise_pl.training.run import train

    make_scenes(tmp_path / "coco", 8, captions=[CAPTIONS, CAPTIONS, CAPTIONS, ["Ah!"], CAPTIONS, CAPTIONS])
    prepare(read_coco(tmp_path / "coco", "train2017"), tmp_path / "shards")
    (shard,) = (tmp_path / "shards").glob("*.tar")
    unlabel(shard, "2")
    data = [f"data.{name}={tmp_path / 'shards'}" for name in ("train", "val")]
    train(composed("train", tmp_path, [*SMALL, *FIT, *data]))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    curves = {
        name: torch.tensor([event.value for event in events.Scalars(name)])
        for name in events.Tags()["scalars"]
        if name.startswith("train/loss") or name == "data/without_words"
    }
    for layer in ("", "_0", "_1", "_2"):
        assert len(curves[f"train/loss_grounding{layer}"]) == STEPS
    assert all(curve.isfinite().all() for curve in curves.values())
    assert 0 < curves["data/without_words"].mean() < 1
    for name in ("train/loss", "train/loss_mask", "train/loss_classification"):
        assert curves[name][-6:].mean() < 0.8 * curves[name][:6].mean(), name
