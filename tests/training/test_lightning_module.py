"""The Lightning module alone; what it does in a Trainer is in test_train.py."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from tiny_models import odise, vocabulary

from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.errors import NonFiniteError
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.models.weights import WeightsError
from odise_pl.structures import Batch, PanopticSegmentation, Segment, Targets, Truth
from odise_pl.training.callbacks import RunProgress
from odise_pl.training.module import OdiseModule
from odise_pl.training.nonfinite import StepSkipper
from odise_pl.training.optimization import OptimizerSettings

CLASSES = vocabulary(("dog", "puppy"), ("grass",))


def module(**changes: Any) -> OdiseModule:
    criterion = SetCriterion(HungarianMatcher(num_points=32), LossWeights(), num_points=32)
    settings = {"vocabulary": CLASSES, "eval_vocabularies": {"val": CLASSES}, "global_batch": 2} | changes
    made = OdiseModule(odise(), criterion, OptimizerSettings(), **settings)
    made.log = made.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return made


def batch() -> Batch:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :30], masks[1, 30:] = True, True
    targets = Targets(torch.tensor([0, 1]), masks)
    return Batch(
        pixels=torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        valid_sizes=((64, 64), (64, 64)),
        targets=(targets, targets),
        image_ids=(7, 8),
        keys=("a", "b"),
        captions=((), ()),
        original_sizes=((64, 64), (64, 64)),
        truths=(None, None),
        words=((), ()),
        labelled=(True, True),
        generated_captions=(None, None),
        image_suffixes=("jpg", "jpg"),
        skipped=("shard 3: cut off",) * 5,
    )


def test_points_depend_on_seed_and_batch_alone() -> None:
    one, other = module(seed=1), module(seed=2)
    assert torch.equal(one.uniform(5)(3, 2), one.uniform(5)(3, 2))
    assert not torch.equal(one.uniform(5)(3, 2), one.uniform(6)(3, 2))
    assert not torch.equal(one.uniform(5)(3, 2), other.uniform(5)(3, 2))


def test_loss_reaches_trainable_weights_alone() -> None:
    trained = module()
    trained.train()
    trained.training_step(batch(), 0).backward()
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert trained._skipped == 5


def test_samples_missing_in_validation_are_counted() -> None:
    evaluated = module(eval_vocabularies={"val": CLASSES}).eval()
    nothing = replace(batch(), pixels=torch.zeros(0, 3, 64, 64), image_ids=(), keys=(), truths=())
    assert evaluated.validation_step(nothing, 0) == {"predictions": []}
    segments = tuple(Segment(i + 1, i, CLASSES.isthing[i]) for i in range(2))
    truth = PanopticSegmentation(torch.ones(64, 64, dtype=torch.int64), segments[:1])
    with torch.no_grad():
        evaluated.validation_step(replace(batch(), truths=(Truth(truth), Truth(truth))), 1)
    result = evaluated.metrics[0].compute()
    assert (result.num_images, result.skipped) == (2, 10)


def test_non_finite_loss_has_gradients_for_other_ranks_and_its_step_is_skipped() -> None:
    broken = module()
    with torch.no_grad():
        broken.model.mask_decoder.query_feat.weight.fill_(float("nan"))
    loss = broken.training_step(batch(), 0)
    assert loss.isnan()
    loss.backward()
    trained = [p for p in broken.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    skipper, norm = StepSkipper(), torch.nn.utils.clip_grad_norm_(trained, 1.0)
    skipper.skip_if_nonfinite(norm, trained, scaled=False)
    assert all(p.grad is None for p in trained)
    skipper.load_state_dict({"in_a_row": 4})
    with pytest.raises(NonFiniteError, match=r"5 steps in a row.*optimizer\.lr"):
        skipper.skip_if_nonfinite(norm, trained, scaled=False)


def with_trainer(module: OdiseModule, rank: int = 0, total: int = 0) -> OdiseModule:
    """As one of several ranks, which have skipped ``total`` samples together."""
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: torch.tensor(total))
    # the module refers to its trainer weakly
    module.kept = trainer = SimpleNamespace(global_rank=rank, strategy=strategy, ckpt_path=None)  # type: ignore[assignment]
    module.trainer = trainer  # type: ignore[assignment]
    return module


def test_checkpoints_fit_any_number_of_ranks() -> None:
    saving = with_trainer(module(), 0, total=12)
    checkpoint: dict[str, Any] = {"state_dict": saving.state_dict()}
    saving.on_save_checkpoint(checkpoint)
    assert checkpoint["odise"]["counters"] == {"skipped": 12, "left_out": 0, "in_a_row": 0}
    checkpoint["odise"]["counters"] = {"skipped": 12, "left_out": 3, "in_a_row": 3}
    for number, expected in ((0, 12), (1, 0)):
        resumed = with_trainer(module(), number)
        resumed.on_load_checkpoint(checkpoint)
        assert resumed._counters == {"skipped": expected, "left_out": 3, "in_a_row": 3}
    del checkpoint["odise"]["counters"]  # as earlier versions wrote it
    resumed.on_load_checkpoint(checkpoint)
    assert set(resumed._counters.values()) == {0}
    del checkpoint["state_dict"]["model.mask_decoder.query_feat.weight"]
    with pytest.raises(WeightsError, match="query_feat"):
        resumed.on_load_checkpoint(checkpoint)


def test_progress_bar_names_no_last_epoch_of_a_run_of_steps() -> None:
    """It overrides a private method of Lightning's bar."""
    bar = RunProgress()
    bar.setup(Trainer(max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False), None, "fit")  # type: ignore[arg-type]
    assert bar._get_train_description(1).strip() == "Epoch 1"
