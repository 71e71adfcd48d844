"""Batch size and windows at once by the memory that is free."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer
from test_lightning_module import module

from odise_pl.training.batch_size import ALL, AUTO, Sizes, choose, fit_to_device
from odise_pl.training.faults import OutOfMemoryError

GIB = 2**30


def needing(**gib: float) -> dict[int, float]:
    return {{"all": ALL, "two": 2, "one": 1}[name]: value for name, value in gib.items()}


@pytest.mark.parametrize(
    ("gib", "free", "images", "batch", "windows", "chosen"),
    [
        (needing(all=10), 80, 64, None, None, Sizes(4, ALL)),  # 6 fit, and 4 divide 64
        (needing(all=10), 12, 64, None, None, Sizes(1, ALL)),
        (needing(all=10, two=7, one=5), 11, 64, None, None, Sizes(1, 2)),
        (needing(all=10, two=7, one=5), 7, 64, None, None, Sizes(1, 1)),
        (needing(all=10, two=7, one=5), 80, 64, None, 1, Sizes(8, 1)),
        (needing(all=10, two=7, one=5), 13, 64, 2, None, Sizes(2, 1)),
        (needing(all=1), 80, 6, None, None, Sizes(6, ALL)),  # never more than a step
    ],
)
def test_largest_sizes_that_fit_and_divide_a_step_are_chosen(
    gib: dict[int, float], free: float, images: int, batch: int | None, windows: int | None, chosen: Sizes
) -> None:
    assert choose(lambda w: int(gib[w] * GIB), int(free * GIB), images, batch, windows) == chosen


def test_trials_may_run_out_of_memory() -> None:
    assert choose(lambda w: GIB if w == 1 else None, 8 * GIB, 4) == Sizes(4, 1)
    with pytest.raises(OutOfMemoryError) as error:
        choose(lambda w: None, 8 * GIB, 4)
    for setting in ("data.batch_size", "backbone.window_batch", "backbone.checkpoint_activations=true"):
        assert setting in str(error.value)


def fitted(**options: object) -> Sizes:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    settings = {"image_size": 128, "batch": AUTO, "windows": AUTO} | options
    return fit_to_device(module(global_batch=8), trainer, **settings)  # type: ignore[arg-type]


def test_sizes_on_a_processor() -> None:
    assert fitted() == Sizes(1, 1)
    assert fitted(batch=4, windows=ALL) == Sizes(4, ALL)
    assert fitted(windows=ALL) == Sizes(1, ALL)
    assert fitted(before=2) == Sizes(2, 1), "a resumed run keeps its batch"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trial_step_on_a_gpu_changes_nothing() -> None:
    made = module(global_batch=8)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    trainer = Trainer(accelerator="gpu", devices=1, logger=False, enable_checkpointing=False)
    assert fit_to_device(made, trainer, 128, AUTO, AUTO) == Sizes(8, ALL)
    assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())


def test_sizes_on_several_devices() -> None:
    made = module(global_batch=8)

    class Two:
        world_size = 2

    assert fit_to_device(made, Two(), 64, AUTO, AUTO) == Sizes(2, ALL)  # type: ignore[arg-type]
    # resumed from one device on which the batch was 8
    assert fit_to_device(made, Two(), 64, AUTO, AUTO, 8) == Sizes(4, ALL)  # type: ignore[arg-type]
    made.global_batch = 6
    assert fit_to_device(made, Two(), 64, AUTO, AUTO) == Sizes(1, ALL)  # type: ignore[arg-type]
