"""The caption model: what a step computes, and training and evaluation through the entry points."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import tiny_models
import torch
from scenes import CAPTIONS, make_scenes
from shard_members import unlabel
from torch import Tensor, distributed, multiprocessing
from trained import composed

from odise_pl.data.prepare.coco import read_coco
from odise_pl.data.prepare.packing import prepare
from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.grounding import GroundingCriterion
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.structures import Batch, Targets
from odise_pl.training.module import OdiseModule, StepLosses
from odise_pl.training.optimization import OptimizerSettings

SMALL = [
    "experiment=laptop",
    "model=odise_caption",
    "data.num_workers=0",
    "data.augment=none",
    "data.eval_short_side=64",
    "data.eval_long_side=64",
    "backbone.input_size=64",
    "model.head.queries=12",
    "criterion.num_points=512",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress",
]


# --- one step ---------------------------------------------------------------------------------------------


def module() -> OdiseModule:
    network = tiny_models.odise("caption")
    # a norm of a single pixel gives its bias, and at zero a ReLU would be decided by rounding
    for part_of_it in (network.backbone.pyramid, network.mask_decoder):
        tiny_models.stir(part_of_it)
    criterion = SetCriterion(
        HungarianMatcher(num_points=32), LossWeights(), num_points=32, oversample=1, importance=0
    )
    classes = tiny_models.vocabulary(("dog",), ("grass",), ("sky",))
    settings = OptimizerSettings()
    grounding = GroundingCriterion()
    # so small a network multiplies rounding errors, which depend on the batch, by thousands
    return OdiseModule(network, criterion, settings, classes, {}, 1, grounding=grounding, words=3).double()


def batch(words: list[tuple[str, ...]], labelled: list[bool] | None = None, seed: int = 0) -> Batch:
    """Images of noise, whose number of targets goes 1, 2, 3, ..."""
    generator = torch.Generator().manual_seed(seed)
    count = len(words)
    targets = tuple(
        Targets(torch.arange(n) % 3, torch.rand(n, 64, 64, generator=generator) > 0.5)
        for n in range(1, count + 1)
    )
    return Batch(
        images=torch.rand(count, 3, 64, 64, generator=generator).double(),
        valid_sizes=((64, 64),) * count,
        targets=targets,
        image_ids=tuple(range(count)),
        keys=tuple(map(str, range(count))),
        captions=((),) * count,
        original_sizes=((64, 64),) * count,
        truths=(None,) * count,
        words=tuple(words),
        labelled=tuple(labelled or [True] * count),
    )


def part(whole: Batch, images: slice) -> Batch:
    """Some images of a batch."""
    names = [field.name for field in fields(Batch) if field.name not in ("skipped", "left_out", "number")]
    return Batch(**{name: getattr(whole, name)[images] for name in names})


def same_points(*size: int) -> Tensor:
    """The same points for every mask, so that it does not matter in which batch an image is."""
    generator = torch.Generator().manual_seed(size[-2])
    return torch.rand(1, *size[1:], generator=generator).expand(size)


def gradients(model: OdiseModule, losses: StepLosses) -> dict[str, Tensor]:
    model.zero_grad()
    losses.total.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None]
    return {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}


DOG, BALL = ("dog", "green grass", "dog"), ("red ball", "sky", "blue box")


def test_the_total_is_that_of_every_output_and_class_is_object() -> None:
    model = module()
    losses = model.losses(batch([DOG, BALL]), same_points)
    named = losses.named()
    outputs = tiny_models.HEAD.layers + 1
    assert len(losses.masks) == len(losses.grounding) == outputs
    assert len(named) == 4 * outputs
    assert {"grounding", "grounding_0", "mask", "classification_2"} <= named.keys()
    torch.testing.assert_close(losses.total, sum(named.values(), torch.zeros(())))
    relabelled = batch([DOG, BALL])
    for target in relabelled.targets:
        target.labels.fill_(2)
    torch.testing.assert_close(model.losses(relabelled, same_points).total, losses.total)


def test_images_without_words_ask_for_nothing() -> None:
    model = module()
    losses = model.losses(batch([(), ()]), same_points)
    assert [loss.item() for loss in losses.grounding] == [0.0] * len(losses.grounding)
    found = gradients(model, losses)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["model.text_projection.proj.weight"].abs().sum() == 0
    mixed = model.losses(batch([DOG, (), BALL]), same_points)
    found = gradients(model, mixed)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["model.text_projection.proj.weight"].abs().sum() > 0
    assert min(loss.item() for loss in mixed.grounding) > 0


def test_unlabelled_images_are_not_pushed_to_no_object() -> None:
    model = module()
    both, alone = batch([DOG, BALL], [True, False]), batch([DOG, BALL])
    losses, expected = (model.losses(b, same_points).masks for b in (both, part(alone, slice(1))))
    for one, other in zip(losses, expected, strict=True):
        for name, value in vars(one).items():
            torch.testing.assert_close(value, getattr(other, name), rtol=1e-5, atol=1e-6)


def test_without_labels_only_the_words_teach() -> None:
    model = module()
    losses = model.losses(batch([DOG, BALL], [False, False]), same_points)
    assert all(term.item() == 0 for loss in losses.masks for term in vars(loss).values())
    found = gradients(model, losses)  # and every parameter has one
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["model.text_projection.proj.weight"].abs().sum() > 0


# --- two ranks --------------------------------------------------------------------------------------------


# Four images, two on each rank: the ranks have different numbers of targets, of queries without one, and of
# images with words.
WORDS = [DOG, (), BALL, DOG]
LABELLED = {"some": [True, True, False, True], "one rank": [True, True, False, False], "none": [False] * 4}


def _train_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = module()
    for name, labelled in LABELLED.items():
        losses = model.losses(part(batch(WORDS, labelled), slice(2 * rank, 2 * rank + 2)), same_points)
        found = gradients(model, losses)
        for tensor in found.values():  # what data-parallel training does
            distributed.all_reduce(tensor)
        torch.save({"losses": losses.named(), "gradients": {n: t / 2 for n, t in found.items()}},
                   f"{folder}/{name} {rank}.pt")  # fmt: skip
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two ranks has of losses and gradients, for every way of being labelled."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_train_rank, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("labelled", LABELLED)
def test_two_ranks_are_one_with_the_joined_batch(trained_ranks: Path, labelled: str) -> None:
    ranks = [torch.load(trained_ranks / f"{labelled} {rank}.pt", weights_only=True) for rank in (0, 1)]
    model = module()
    losses = model.losses(batch(WORDS, LABELLED[labelled]), same_points)
    for rank, own in enumerate(ranks):  # unlabelled images have no class, mask or dice loss
        terms = [value for name, value in own["losses"].items() if not name.startswith("grounding")]
        assert bool(torch.stack(terms).any()) == any(LABELLED[labelled][2 * rank : 2 * rank + 2])
    for name, value in losses.named().items():
        mean = (ranks[0]["losses"][name] + ranks[1]["losses"][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6, msg=name)
        if name.startswith("grounding"):
            torch.testing.assert_close(ranks[0]["losses"][name], ranks[1]["losses"][name])
    for name, value in gradients(model, losses).items():
        error = (ranks[0]["gradients"][name] - value).abs().max()
        assert error <= 1e-5 * value.abs().max() + 1e-9, name


# --- the entry points -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes; two have no caption, one caption has no noun, and one image has no labels."""
    folder = tmp_path_factory.mktemp("captioned")
    captions = [CAPTIONS, CAPTIONS, CAPTIONS, ["Ah!"], CAPTIONS, CAPTIONS]
    make_scenes(folder / "coco", 8, captions=captions)
    prepare(read_coco(folder / "coco", "train2017"), folder / "shards")
    (shard,) = (folder / "shards").glob("*.tar")
    unlabel(shard, "2")
    return folder / "shards"


STEPS = 60


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from odise_pl.training.run import train

    folder = tmp_path_factory.mktemp("run")
    steps = [f"trainer.max_steps={STEPS}", "validate_every=1000", "data.epoch_length=400"]
    logging = ["trainer.log_every_n_steps=1", f"callbacks.checkpoint.every_n_train_steps={STEPS}"]
    overrides = [*SMALL, *steps, *logging, f"data.train={shards}", f"data.val={shards}"]
    train(composed("train", folder, overrides))
    return folder


def test_it_learns(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
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
        assert curves[name][-10:].mean() < 0.8 * curves[name][:10].mean(), name


@pytest.mark.parametrize("classifier", ["both", "diffusion", "discriminative"])
def test_one_checkpoint_evaluates_with_every_classifier(
    run: Path, shards: Path, tmp_path: Path, classifier: str, scores: dict[str, dict[str, float]]
) -> None:
    from odise_pl.evaluation.evaluate import evaluate

    overrides = [
        f"data.val={shards}",
        "data=shards",
        "data.num_workers=0",
        "trainer=cpu",
        f"classifier={classifier}",
        f"ckpt={run / 'checkpoints' / 'last.ckpt'}",
    ]
    result = evaluate(composed("evaluate", tmp_path, overrides), overrides)["val"]
    assert all(0 <= value <= 1 for value in result.values())
    assert result not in scores.values()
    scores[classifier] = result


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, float]]:
    return {}


def test_captions_need_words(tmp_path: Path, shards: Path) -> None:
    from odise_pl.runs.settings import check_training

    from odise_pl.errors import SettingError

    config = composed("train", tmp_path, [*SMALL, f"data.train={shards}", "data.words=0"])
    with pytest.raises(SettingError, match=r"data\.words=0"):
        check_training(config)
