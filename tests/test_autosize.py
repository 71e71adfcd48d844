"""Batch size and windows at once by the memory that is free."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer
from test_lightning_module import module

from odise_pl import autosize
from odise_pl.autosize import ALL, AUTO, Sizes, choose, fit_to_device
from odise_pl.faults import OutOfMemoryError
from odise_pl.lightning_module import OdiseModule

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
def test_the_most_that_fits_and_divides_a_step_is_chosen(
    gib: dict[int, float], free: float, images: int, batch: int | None, windows: int | None, chosen: Sizes
) -> None:
    assert choose(lambda w: int(gib[w] * GIB), int(free * GIB), images, batch, windows) == chosen


def test_a_trial_that_runs_out_of_memory_is_no_end() -> None:
    assert choose(lambda w: GIB if w == 1 else None, 8 * GIB, 4) == Sizes(4, 1)
    with pytest.raises(OutOfMemoryError) as error:
        choose(lambda w: None, 8 * GIB, 4)
    for setting in ("data.batch_size", "backbone.window_batch", "backbone.checkpoint_activations=true"):
        assert setting in str(error.value)


def fitted(free: int, monkeypatch: pytest.MonkeyPatch, **options: object) -> tuple[Sizes, OdiseModule]:
    monkeypatch.setattr(autosize, "free_memory", lambda device: free)
    made = module(global_batch=8)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    settings = {"image_size": 128, "batch": AUTO, "windows": AUTO} | options
    return fit_to_device(made, trainer, **settings), made  # type: ignore[arg-type]


def test_a_trial_step_measures_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: tensor.clone() for name, tensor in module(global_batch=8).state_dict().items()}
    roomy, made = fitted(64 * GIB, monkeypatch)
    assert roomy == Sizes(8, ALL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())
    sizes = [fitted(mib * 2**20, monkeypatch)[0] for mib in (200, 50)]
    assert [s.batch for s in sizes] == sorted((s.batch for s in sizes), reverse=True)
    assert sizes[-1].batch < roomy.batch
    with pytest.raises(OutOfMemoryError):
        fitted(2**20, monkeypatch)


def test_what_an_image_takes_grows_as_the_choice_assumes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(global_batch=8)
    one = autosize.demanding_batch(made, 128)
    taken = []
    for images in (1, 2, 4):
        joined = autosize.demanding_batch(made, 128, images)
        taken.append(autosize._counted_bytes(lambda b=joined: made.losses(b, made.uniform(0)).total, made))
        made.zero_grad()
    assert len(one) == 1
    assert taken[1] < 2 * taken[0], "gradients of weights are there once"
    assert taken[2] - taken[1] == pytest.approx(2 * (taken[1] - taken[0]), rel=0.15)


def test_what_is_set_stays_and_a_run_that_goes_on_keeps_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(0, monkeypatch, batch=4, windows=0)[0] == Sizes(4, 0)
    assert fitted(64 * GIB, monkeypatch, before=2)[0] == Sizes(2, ALL)
    assert fitted(64 * GIB, monkeypatch, batch=1)[0] == Sizes(1, ALL)
    assert fitted(64 * GIB, monkeypatch, windows=1)[0] == Sizes(8, 1)


def test_several_devices_take_the_published_sizes() -> None:
    made = module(global_batch=8)

    class Two:
        world_size = 2

    assert fit_to_device(made, Two(), 64, AUTO, AUTO) == Sizes(2, ALL)  # type: ignore[arg-type]
    # a run that goes on, from one device on which the batch was 8
    assert fit_to_device(made, Two(), 64, AUTO, AUTO, 8) == Sizes(4, ALL)  # type: ignore[arg-type]
    made.global_batch = 6
    assert fit_to_device(made, Two(), 64, AUTO, AUTO) == Sizes(1, ALL)  # type: ignore[arg-type]
