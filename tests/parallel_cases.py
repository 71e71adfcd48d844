"""Short runs whose strategies must agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import tiny_models
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from ranks import torchrun
from torch import Tensor

from odise_pl.distributed.sharding import keep_in_step
from odise_pl.distributed.strategy import ShardedStrategy
from odise_pl.losses.contrast import ContrastCriterion
from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.grounding import GroundingCriterion
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.losses.pixels import FeatureCriterion, PixelCriterion
from odise_pl.models.build import GeneratorSettings, RefinementSettings, heuristic_captioner
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.ops.points import Uniform
from odise_pl.structures import Batch, Targets
from odise_pl.training.contrast import ContrastModule
from odise_pl.training.module import OdiseModule
from odise_pl.training.optimization import OptimizerSettings

# Two images on each of two ranks: words, targets and labels are not dealt evenly.
DOG, BALL = ("dog", "green grass", "dog"), ("red ball", "sky", "blue box")
WORDS = (DOG, (), BALL, DOG)
LABELLED = ((True, True, False, True), (True, True, False, False), (False,) * 4)
# Steps, height of the images, and the network.
CASES: dict[str, tuple[int, int, Callable[[], Any]]] = {
    "caption": (3, 64, partial(tiny_models.odise, "caption")),
    # The second rank's images are twice as high and have twice as many windows, which run one by one and
    # again in the backward pass; gradients of two batches are accumulated; each rank has its own sentences.
    "uneven": (2, 64, partial(
        tiny_models.odise, checkpoint_activations=True, window_batch=1,
        captioner=heuristic_captioner(["dog", "grass", "sky", "ball"], top=2))),
    # Without a captioner, and windows run without gradients; tables of positions lie within blocks.
    "timm": (1, 64, partial(tiny_models.odise, family="swin")),
    # One convolutional CLIP is backbone and classifier: its blocks are sharded once.
    "shared CLIP": (1, 64, tiny_models.fc_clip),
    "class-conditional": (1, 64, partial(tiny_models.odise, architecture=tiny_models.LDM)),
    "pooled text": (1, 64, partial(
        tiny_models.odise, architecture=tiny_models.XL,
        captioner=heuristic_captioner(["dog", "grass"], top=1))),
    # Other methods: the ranks have crops of different numbers of images, ...
    "crops": (1, 64, partial(
        tiny_models.odise, classifier=ClassifierSettings(regions="cropped"), family="resnet", trained=True)),
    # ... a refinement reads CLIP's weights, ...
    "refined": (1, 64, partial(
        tiny_models.odise, "mask", ClassifierSettings("discriminative"), family="swin",
        refinement=RefinementSettings((1,)))),
    # ... and others have no masks.
    "dense": (1, 64, tiny_models.dense),
    "generated": (1, 64, partial(tiny_models.dense, generator=GeneratorSettings(16, 8, 4))),
    "GroupViT": (1, 64, tiny_models.grouping),
}  # fmt: skip


def same_points(*size: int) -> Tensor:
    """The same points for every mask, so that it does not matter in which batch an image is."""
    one = (1, *size[1:]) if size[1:] else size  # of a single mask
    return torch.rand(one, generator=torch.Generator().manual_seed(sum(one))).expand(size)


class Module(OdiseModule):
    def uniform(self, batch_idx: int) -> Uniform:
        return same_points


class TextModule(ContrastModule):
    def uniform(self, batch_idx: int) -> Uniform:
        return same_points


def module(case: str) -> OdiseModule:
    network = CASES[case][2]()
    vocabulary = tiny_models.vocabulary(("dog",), ("grass",), ("sky",))
    optimizer = OptimizerSettings(lr=1e-4, reference_batch=4, warmup_steps=2)
    if case == "GroupViT":
        return TextModule(network, ContrastCriterion(), optimizer, vocabulary, {}, 4, words=3).double()
    # a norm of a single pixel gives its bias, and at zero a ReLU would be decided by rounding
    parts = (network.backbone.pyramid, network.backbone.captioner, network.mask_decoder)
    for part in (part for part in parts if part is not None):
        for parameter in part.parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(parameter.numel())
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    criterion = {"dense": PixelCriterion, "generated": FeatureCriterion}.get(case, SetCriterion)
    losses = criterion(
        HungarianMatcher(num_points=32), LossWeights(), num_points=32, oversample=1, importance=0
    )
    grounded = {"grounding": GroundingCriterion(), "words": 3} if case == "caption" else {}
    # so small a network multiplies rounding errors, which depend on the batch, by thousands
    return Module(network, losses, optimizer, vocabulary, {}, 4, **grounded).double()


def batch(step: int = 0, height: int = 64, images: slice = slice(None), **changes: Any) -> Batch:
    """Some of the four images of a step."""
    generator = torch.Generator().manual_seed(step)
    whole: dict[str, Any] = {
        "pixels": torch.rand(4, 3, height, 64, generator=generator).double(),
        "valid_sizes": ((height, 64),) * 4,
        "targets": tuple(
            Targets(torch.arange(n) % 3, torch.rand(n, height, 64, generator=generator) > 0.5)
            for n in (1, 2, 3, 4)
        ),
        "image_ids": tuple(range(4)),
        "keys": tuple("0123"),
        "captions": (("a dog on green grass",), (), ("a red ball", "sky"), ("a dog",)),
        "original_sizes": ((height, 64),) * 4,
        "truths": (None,) * 4,
        "words": WORDS,
        "labelled": LABELLED[step],
        "generated_captions": (None,) * 4,
        "image_suffixes": ("jpg",) * 4,
    }
    return Batch(**{name: value[images] for name, value in (whole | changes).items()})


class Steps:
    """A loader of one rank's share of every step."""

    def __init__(self, case: str, rank: int, ranks: int) -> None:
        self.steps, height, _ = CASES[case]
        self.height = height * (rank + 1) if case == "uneven" else height
        size = 4 // ranks
        self.images = slice(rank * size, (rank + 1) * size)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return (batch(step, self.height, self.images) for step in range(self.steps))


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(float(outputs["loss"]))


def fit(case: str, rank: int = 0, ranks: int = 1, **options: Any) -> Mapping[str, Any]:
    """Losses and trained weights after some steps."""
    model, losses = module(case), Losses()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=2 if case == "uneven" else 1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses],
        **options,
    )
    trainer.fit(model, train_dataloaders=Steps(case, rank, ranks))
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    whole = {n for n, p in model.named_parameters() if type(p.data) is Tensor and p.dim() > 1}
    return {
        "losses": torch.tensor(losses.seen, dtype=torch.float64),
        "weights": trained,
        "whole": sorted(whole - trained.keys()),
        "predicted": predict(model, rank, CASES[case][1]),
    }


def predict(model: OdiseModule, rank: int, height: int) -> list[Tensor]:
    """Predictions of rank 0, which has images; the other rank has none."""
    network, one = model.model.eval(), batch(0, height)
    classes = network.prepare(model.vocabulary, None)
    if rank > 0:
        keep_in_step(network, classes)
        return []
    sizes = [(height, 64), (height, 48)]
    predictions = network.predict(one.images[:2], sizes, sizes, classes)
    return [result for p in predictions for result in (p.semantic, p.instances.scores)]


def run_rank(rank: int, port: int, out: Path, cases: Sequence[str]) -> None:
    """One rank of two, started as torchrun does."""
    os.environ |= torchrun(0, rank, 1, 2) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    # as in conf/trainer: second stages do not train the first one's weights
    ddp = partial(DDPStrategy, find_unused_parameters=True)
    for name, strategy in (("ddp", ddp), ("fsdp", ShardedStrategy)):
        for case in cases:
            found = fit(case, rank, 2, strategy=strategy(), devices=2)
            torch.save(found, out / f"{name} {case} {rank}.pt")
