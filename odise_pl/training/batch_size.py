"""Images and windows per forward pass for one GPU, chosen by the memory that a trial step takes."""

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
SHARE = 0.85  # of the free memory; the rest is for validation, fragmentation and other programs
_OBJECTS = 40  # in the image of the trial: more than in nearly all images of COCO


@dataclass(frozen=True)
class Sizes:
    """Images of a forward pass, and how many of their windows run at once (0: all)."""

    batch: int
    windows: int


# Bytes that a step with one image takes, by windows at once; None: out of memory.
Trial = Callable[[int], int | None]


def choose(
    trial: Trial, free: int, images: int, batch: int | None = None, windows: int | None = None
) -> Sizes:
    """The most images at once that fit; fewer windows at once only if not even one image fits.

    Args:
        trial: see :data:`Trial`; activations grow in proportion to the images.
        free: bytes.
        images: of an optimiser step on this device; a multiple of the batch.
        batch, windows: set by the user.

    Raises:
        OutOfMemoryError: the smallest sizes do not fit.
    """
    room = int(SHARE * free)
    for some in (ALL, 2, 1) if windows is None else (windows,):
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
    """Resolve ``auto``: by trial steps on one GPU, as published on several, one image and window on a CPU.

    Args:
        module: is moved to the GPU for trials; its weights do not change.
        trainer: knows the devices and the precision.
        image_size: side of training images.
        batch, windows: of a forward pass, or ``auto``.
        before: batch of the resumed run, which ``auto`` keeps as far as this number of devices allows.

    Raises:
        OutOfMemoryError: the smallest sizes do not fit; names the settings that need less.
    """
    images = module.global_batch // trainer.world_size
    if batch == AUTO and before is not None:
        batch = largest_batch(images, before)
    if trainer.world_size > 1:
        batch = largest_batch(images, PUBLISHED) if batch == AUTO else batch
        windows = ALL if windows == AUTO else windows
    elif trainer.strategy.root_device.type != "cuda":
        batch, windows = (1 if size == AUTO else size for size in (batch, windows))
    if batch != AUTO and windows != AUTO:
        return Sizes(int(batch), int(windows))
    device = trainer.strategy.root_device
    place_all(module, trainer)  # as training will have them
    module.to(device)
    torch.cuda.empty_cache()
    trained = [p for p in module.parameters() if p.requires_grad]
    free = torch.cuda.mem_get_info(device)[0] - 2 * sum(p.nbytes for p in trained)  # AdamW's state
    one, context = _demanding_image(module, image_size).to(device), trainer.precision_plugin.forward_context
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


def _demanding_image(module: OdiseModule, side: int) -> Batch:
    """A square image with more objects than nearly any of COCO."""
    labels = torch.arange(_OBJECTS) % len(module.vocabulary.names)
    sample = Sample(
        image=torch.rand(3, side, side),
        targets=Targets(labels, torch.ones(_OBJECTS, side, side, dtype=torch.bool)),
        image_id=0,
        key="trial",
        original_size=(side, side),
        captions=("a trial",),
        words=("trial",) * module.words,
        generated_caption="a trial",
    )
    return collate([sample])
