"""Batch size and windows per forward pass for one GPU, chosen by the memory that a trial step takes."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch

from odise_pl.data.collate import collate
from odise_pl.distributed.sharding import place_all
from odise_pl.structures import Batch, Sample, Targets
from odise_pl.training.faults import OUT_OF_MEMORY, OutOfMemoryError, is_out_of_memory
from odise_pl.training.module import OdiseModule

_log = logging.getLogger(__name__)
AUTO = "auto"
PUBLISHED = 2  # images of a forward pass on each of 32 devices
ALL = 0  # windows of a batch at once
SHARE = 0.85  # of the free memory; validation, fragments and other programs get the rest
_OBJECTS = 40  # on the image of the trial: more than nearly all images of COCO have
_WINDOWS = (ALL, 2, 1)


@dataclass(frozen=True)
class Sizes:
    """What runs at once: images of a forward pass, and windows of them (0: all)."""

    batch: int
    windows: int


# Bytes that a step with one image takes with so many windows at once; None: more than there are.
Trial = Callable[[int], int | None]


def choose(
    trial: Trial, free: int, images: int, batch: int | None = None, windows: int | None = None
) -> Sizes:
    """The most images at once that fit; fewer windows at once only where not even one image would.

    Args:
        trial: see :data:`Trial`; activations grow in proportion to the images.
        free: bytes.
        images: of an optimiser step on this device; the batch divides them.
        batch, windows: what is set already.

    Raises:
        OutOfMemoryError: the least does not fit.
    """
    room = int(SHARE * free)
    for some in _WINDOWS if windows is None else (windows,):
        needed = trial(some)
        if needed is not None and needed * (batch or 1) <= room:
            return Sizes(batch or largest_batch(images, room // max(needed, 1)), some)
    raise OutOfMemoryError(f"{OUT_OF_MEMORY} ({free / 2**30:.1f} GiB are free)")


def largest_batch(images: int, limit: int) -> int:
    """The most images at once, of ``limit`` at most, that divide those of an optimiser step."""
    return max(n for n in range(1, images + 1) if images % n == 0 and n <= max(limit, 1))


def fit_to_device(
    module: OdiseModule,
    trainer: lightning.Trainer,
    image_size: int,
    batch: int | str,
    windows: int | str,
    before: int | None = None,
) -> Sizes:
    """Sizes that are set stay; ``auto`` is found by trial steps on one GPU, and is as published on several.

    On a processor ``auto`` is one image and one window per forward pass.

    Args:
        module: is moved to the GPU if there is one; its weights stay as they are.
        trainer: knows the devices and the precision.
        image_size: side of training images.
        batch: images of a forward pass, or ``auto``.
        windows: windows at once, or ``auto``.
        before: images of a forward pass in the run that goes on, which ``auto`` keeps, or as many of them as
            this number of devices allows.

    Raises:
        OutOfMemoryError: the least does not fit; names the settings that need less.
    """
    images = module.global_batch // trainer.world_size
    if batch == AUTO and before is not None:
        batch = largest_batch(images, before)
    if trainer.world_size > 1:
        batch = largest_batch(images, PUBLISHED) if batch == AUTO else batch
        windows = ALL if windows == AUTO else windows
    elif trainer.strategy.root_device.type != "cuda":  # gains nothing from more at once
        batch, windows = (1 if size == AUTO else size for size in (batch, windows))
    if batch != AUTO and windows != AUTO:
        return Sizes(int(batch), int(windows))
    device = trainer.strategy.root_device
    place_all(module, trainer)  # as training will have them
    module.to(device)
    torch.cuda.empty_cache()
    trained = [p for p in module.parameters() if p.requires_grad]
    free = torch.cuda.mem_get_info(device)[0] - 2 * sum(p.nbytes for p in trained)  # AdamW's state
    one, context = demanding_batch(module, image_size).to(device), trainer.precision_plugin.forward_context
    wanted = [None if size == AUTO else int(size) for size in (batch, windows)]
    found = choose(lambda some: _trial(module, one, some, context), free, images, *wanted)
    chosen = f"{found.batch} images and {found.windows or 'all'} windows per forward pass"
    _log.info("%s, of %.1f GiB of free memory", chosen, free / 2**30)
    return found


def _trial(module: OdiseModule, one: Batch, windows: int, context: Any) -> int | None:
    """The peak of a step beyond what is allocated all the time; None if memory runs out."""
    module.model.backbone.window_batch = windows
    device = module.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        with context():
            module.losses(one, module.uniform(0)).total.backward()
        return torch.cuda.max_memory_allocated(device) - before
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        module.zero_grad(set_to_none=True)
        gc.collect()


def demanding_batch(module: OdiseModule, side: int, images: int = 1) -> Batch:
    """Images of ``side`` pixels with more objects than nearly any of COCO."""
    return collate([_sample(module, side) for _ in range(images)])


def _sample(module: OdiseModule, side: int) -> Sample:
    labels = torch.arange(_OBJECTS) % len(module.vocabulary.names)
    return Sample(
        image=torch.rand(3, side, side),
        targets=Targets(labels, torch.ones(_OBJECTS, side, side, dtype=torch.bool)),
        image_id=0,
        key="trial",
        original_size=(side, side),
        captions=("a trial",),
        words=("trial",) * module.words,
        generated_caption="a trial",
    )
