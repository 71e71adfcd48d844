"""The Lightning module alone; what it does in a Trainer is in test_train.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from tiny_models import odise, vocabulary

from odise_pl.checkpoints.reading import describe
from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.errors import NonFiniteError
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.models.weights import WeightsError
from odise_pl.structures import Batch, PanopticSegmentation, Segment, Targets, Truth
from odise_pl.training.callbacks import RunProgress
from odise_pl.training.module import OdiseModule
from odise_pl.training.optimization import OptimizerSettings

CLASSES = vocabulary(("dog", "puppy"), ("grass",))


def module(**changes: Any) -> OdiseModule:
    criterion = SetCriterion(HungarianMatcher(num_points=32), LossWeights(), num_points=32)
    settings = {"vocabulary": CLASSES, "evaluations": {"val": CLASSES}, "global_batch": 2} | changes
    made = OdiseModule(odise(), criterion, OptimizerSettings(), **settings)
    made.log = made.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return made


def batch() -> Batch:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :30], masks[1, 30:] = True, True
    targets = Targets(torch.tensor([0, 1]), masks)
    return Batch(
        images=torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        valid_sizes=((64, 64), (64, 64)),
        targets=(targets, targets),
        image_ids=(7, 8),
        keys=("a", "b"),
        captions=((), ()),
        original_sizes=((64, 64), (64, 64)),
        truths=(None, None),
        skipped=("shard 3: cut off",),
        left_out=5,
    )


def test_a_step_draws_the_same_points_again() -> None:
    one, other = module(seed=1), module(seed=2)
    assert torch.equal(one.uniform(5)(3, 2), one.uniform(5)(3, 2))
    assert not torch.equal(one.uniform(5)(3, 2), one.uniform(6)(3, 2))
    assert not torch.equal(one.uniform(5)(3, 2), other.uniform(5)(3, 2))


def test_the_loss_trains_what_is_trainable_and_nothing_else() -> None:
    trained = module()
    trained.train()
    trained.training_step(batch(), 0).backward()
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert trained._skipped == 5


def test_what_evaluation_leaves_out_is_counted_in_samples() -> None:
    evaluated = module(evaluations={"val": CLASSES}).eval()
    nothing = replace(batch(), images=torch.zeros(0, 3, 64, 64), image_ids=(), keys=(), truths=(), left_out=3)
    assert evaluated.validation_step(nothing, 0) == {"predictions": []}
    segments = tuple(Segment(i + 1, i, CLASSES.isthing[i]) for i in range(2))
    truth = PanopticSegmentation(torch.ones(64, 64, dtype=torch.int64), segments[:1])
    with torch.no_grad():
        evaluated.validation_step(replace(batch(), truths=(Truth(truth), Truth(truth))), 1)
    result = evaluated.metrics[0].compute()
    assert (result.num_images, result.left_out) == (2, 8)


def test_a_batch_without_a_loss_still_has_gradients_for_those_who_wait_for_them() -> None:
    broken = module()
    with torch.no_grad():
        broken.model.mask_decoder.query_feat.weight.fill_(float("nan"))
    loss = broken.training_step(batch(), 0)
    assert loss.isnan()
    loss.backward()
    trained = [p for p in broken.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    assert not broken._guard.admits(norm, trained)
    assert all(p.grad is None for p in trained)
    broken._guard._in_a_row = 4
    with pytest.raises(NonFiniteError, match=r"5 steps in a row.*optimizer\.lr"):
        broken._guard.admits(norm, trained)


def test_a_checkpoint_describes_itself(tmp_path: Path) -> None:
    saved = module(record={"config": {"backbone": {"timesteps": [0]}}, "data": {}})
    checkpoint: dict[str, Any] = {"state_dict": saved.state_dict()}
    saved.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    described = describe(tmp_path / "a.ckpt")
    assert described.vocabulary == CLASSES
    assert described.record is not None
    assert described.record["config"]["backbone"]["timesteps"] == [0]
    torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "b.pth")
    assert describe(tmp_path / "b.pth").record is None


def rank(number: int, module: OdiseModule, total: int = 0) -> OdiseModule:
    """As one of several ranks, which have skipped ``total`` together."""
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: torch.tensor(total))
    module._trainer = SimpleNamespace(global_rank=number, strategy=strategy, ckpt_path=None)  # type: ignore[assignment]
    return module


def test_counters_are_kept_in_checkpoints_for_any_number_of_ranks() -> None:
    saved = module()
    saved.training_step(batch(), 0)
    saved._guard.left_out = saved._guard._in_a_row = 3
    checkpoint: dict[str, Any] = {"state_dict": saved.state_dict()}
    saved._note_counters()
    saved.training_step(batch(), 1)  # of a step that is not finished
    rank(0, saved, 12).on_save_checkpoint(checkpoint)
    assert checkpoint["odise"]["counters"] == {"skipped": 12, "left_out": 3, "in_a_row": 3}
    for number, expected in ((0, 12), (1, 0)):
        resumed = rank(number, module())
        resumed.on_load_checkpoint(checkpoint)
        assert (resumed._skipped, resumed._guard.left_out, resumed._guard._in_a_row) == (expected, 3, 3)
    saved._trainer = None
    saved.on_save_checkpoint(checkpoint)
    assert checkpoint["odise"]["counters"]["skipped"] == 5
    del checkpoint["odise"]["counters"]  # as earlier versions wrote it
    resumed.on_load_checkpoint(checkpoint)
    assert (resumed._skipped, resumed._guard.left_out) == (0, 0)


def test_a_checkpoint_that_lacks_a_weight_is_refused() -> None:
    saved = module()
    checkpoint: dict[str, Any] = {"state_dict": saved.state_dict()}
    saved.on_save_checkpoint(checkpoint)
    saved.on_load_checkpoint(checkpoint)
    del checkpoint["state_dict"]["model.mask_decoder.query_feat.weight"]
    with pytest.raises(WeightsError, match="query_feat"):
        saved.on_load_checkpoint(checkpoint)


def test_the_progress_bar_names_no_last_epoch_of_a_run_of_steps() -> None:
    bar = RunProgress()
    bar._trainer = Trainer(max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    assert bar._get_train_description(1).strip() == "Epoch 1"
