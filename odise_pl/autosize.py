"""Batch size and windows at once for one device, chosen by what a trial step takes of its free memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import psutil
import torch
from torch import Tensor

from odise_pl.allocations import Allocations, bytes_of
from odise_pl.data.collate import collate
from odise_pl.faults import OUT_OF_MEMORY, OutOfMemoryError, is_out_of_memory
from odise_pl.lightning_module import OdiseModule
from odise_pl.parallel import place_all
from odise_pl.structures import Batch, Sample, Targets

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
    """What is set as it is, and what is ``auto`` by trial steps; with several devices, as published.

    Args:
        module: is moved to the device of one; its weights stay as they are.
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
    if batch != AUTO and windows != AUTO:
        return Sizes(int(batch), int(windows))
    device = trainer.strategy.root_device
    place_all(module, trainer)  # as training will have them
    module.to(device)
    free = free_memory(device) - 2 * bytes_of([p for p in module.parameters() if p.requires_grad])  # AdamW's
    one, context = demanding_batch(module, image_size).to(device), trainer.precision_plugin.forward_context
    wanted = [None if size == AUTO else int(size) for size in (batch, windows)]
    found = choose(lambda some: _trial(module, one, some, context), free, images, *wanted)
    told = f"{found.batch} images at once, {found.windows or 'all'} windows at once"
    _log.info("%s, of %.1f GiB of free memory", told, free / 2**30)
    return found


def free_memory(device: torch.device) -> int:
    """Bytes of a device that nothing uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _trial(module: OdiseModule, one: Batch, windows: int, context: Any) -> int | None:
    module.model.backbone.window_batch = windows
    measure = _cuda_bytes if one.images.device.type == "cuda" else _counted_bytes
    try:
        with context():
            return measure(lambda: module.losses(one, module.uniform(0)).total, module)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        module.zero_grad(set_to_none=True)
        gc.collect()


def _cuda_bytes(loss: Callable[[], Tensor], module: OdiseModule) -> int:
    """The peak of a step beyond what is there all the time."""
    device = module.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    loss().backward()
    return torch.cuda.max_memory_allocated(device) - before


def _counted_bytes(loss: Callable[[], Tensor], module: OdiseModule) -> int:
    """The same where the device keeps no count."""
    with Allocations() as allocations:
        loss().backward()
    return allocations.peak


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
