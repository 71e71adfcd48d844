"""Shard sets as a LightningDataModule."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch.distributed
from lightning.pytorch import LightningDataModule

from odise_pl.data.eval_sets import by_set, eval_sets
from odise_pl.data.loader import DamageLog, EvalLoader, LoaderOptions, TrainLoader
from odise_pl.data.manifest import ShardSet, check_shards
from odise_pl.data.records import DataError
from odise_pl.data.sample_order import EvalPlan, TrainPlan, limited
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.data.transforms import ColorJitter, EvalResize, LargeScaleJitter, Transform
from odise_pl.vocabulary import Vocabulary, rename

_log = logging.getLogger(__name__)
AUGMENTATIONS = ("lsj", "none")


class PanopticDataModule(LightningDataModule):
    """Training and evaluation on shard sets that ``data/prepare`` made.

    Shard sets are named by their folder, their ``dataset.json``, or a URL of it that WebDataset can open
    (``https://.../dataset.json``, ``pipe:aws s3 cp s3://bucket/coco/dataset.json -``).

    The order of batches follows from ``seed``, the place in training, the rank, and the numbers of ranks and
    workers; :class:`~odise_pl.data.sample_order.TrainPlan` says how. Under a Trainer the place is the number
    of batches that the Trainer has finished, which its checkpoints hold: a run resumed in mid-epoch takes
    the batch that would have come next. Without a Trainer see :meth:`set_position`.

    Args:
        train: shard set to train on.
        val: shard set to evaluate on, or several by name, each with settings of its own if need be: see
            :class:`~odise_pl.data.eval_sets.EvalSet`.
        batch_size: images per training step on each device; ``auto`` is set later, by who knows it.
        eval_batch_size: images per evaluation step. Those of different sizes are padded to one canvas, whose
            windows are those of the largest: the results are not those of each image by itself.
        num_workers: loader processes per device.
        image_size: side of the square that augmentation makes.
        scale_range: scales of large-scale jitter.
        eval_short_side: wanted shorter side in evaluation.
        eval_long_side: limit of the longer side in evaluation.
        shuffle_buffer: samples that each worker's shuffle buffer holds.
        seed: of order and augmentation.
        epoch_length: training samples of an epoch over all devices; by default the set's number of
            samples. It may be larger, which repeats the set within an epoch.
        augment: "lsj" (large-scale jitter), or "none": training sees images exactly as evaluation does.
        color_jitter: brightness, contrast and saturation of training images change by up to this share;
            0, as published: not at all.
        limit_samples: use only the first samples of each set.
        prefetch_factor: batches that each loader process keeps ready.
        pin_memory: page-locked batches; None: if there is a GPU.
        timeout: seconds after which a batch that does not come is an error.
        words: noun phrases drawn, with replacement, from one random caption of each training image; the
            caption model needs them.

    Raises:
        DataError: an option is unknown; later, if a shard set is missing or too small.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | Mapping[str, Any] | None = None,
        batch_size: int | str = 2,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        image_size: int = 1024,
        scale_range: Sequence[float] = (0.1, 2.0),
        eval_short_side: int = 1024,
        eval_long_side: int = 2560,
        shuffle_buffer: int = 512,
        seed: int = 0,
        epoch_length: int | None = None,
        augment: str = "lsj",
        limit_samples: int | None = None,
        prefetch_factor: int = 2,
        pin_memory: bool | None = None,
        words: int = 0,
        timeout: float = 600,
        color_jitter: float = 0.0,
    ) -> None:
        super().__init__()
        if augment not in AUGMENTATIONS:
            raise DataError(f"augment is {augment!r}; there are {', '.join(AUGMENTATIONS)}")
        if not 0 <= color_jitter <= 1:
            raise DataError(f"data.color_jitter is {color_jitter}; give 0 (none, as published) to 1")
        if words < 0:
            raise DataError(f"data.words is {words}; give 0 (no words) or more, 8 as published")
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer samples than devices
        self.train, self.sets = train, eval_sets(val)
        self.batch_size = 1 if isinstance(batch_size, str) else batch_size
        self.eval_batch_size = eval_batch_size
        self.seed, self.shuffle_buffer, self.epoch_length = seed, shuffle_buffer, epoch_length
        self.limit_samples, self.words = limit_samples, words
        self.resize = EvalResize(eval_short_side, eval_long_side)
        jitter = LargeScaleJitter(image_size, (float(scale_range[0]), float(scale_range[1])))
        self.transform: Transform = jitter if augment == "lsj" else self.resize
        if color_jitter:
            self.transform = ColorJitter(self.transform, color_jitter)
        self.options = LoaderOptions(num_workers, prefetch_factor, pin_memory, timeout)
        self._damage = DamageLog()
        self._sets: dict[str, ShardSet] = {}
        self._used = 0

    @property
    def eval_names(self) -> tuple[str, ...]:
        """Names of the evaluation sets, in the order of the evaluation loaders."""
        return tuple(self.sets)

    def setup(self, stage: str | None = None) -> None:
        """Read the descriptions of the shard sets that a stage needs.

        Raises:
            DataError: one is missing; the message names it and the command that makes it.
        """
        if stage in (None, "fit"):
            self.shards("train")
        for name in self.eval_names:
            self.shards(name)

    def shards(self, name: str) -> ShardSet:
        """The shard set "train", or an evaluation set by its name (:attr:`eval_names`)."""
        source = self.train if name == "train" else self.sets[name].shards if name in self.sets else None
        if source is None:
            raise DataError(
                f"no data set '{name}': give its folder, for example data.{name}=data/shards/coco_{name}"
            )
        if name not in self._sets:
            self._sets[name] = check_shards(source)
        return self._sets[name]

    def vocabulary(self, name: str = "train") -> Vocabulary:
        """The classes of a shard set, see :meth:`shards`."""
        return self.shards(name).manifest.vocabulary

    def eval_vocabulary(self, name: str, names: Any = None) -> Vocabulary:
        """The classes of an evaluation set, by the names that its settings give, or else ``names``.

        Args:
            name: of the set.
            names: anything that ``load_vocabulary`` reads, for all sets, or such by set; None: the set's own.

        Raises:
            VocabularyError: the names cannot be read or are of another number of classes.
        """
        names = by_set(names)
        general = names.get(name) if isinstance(names, Mapping) else names
        return rename(self.vocabulary(name), self.sets[name].vocabulary or general)

    def measures(self, name: str) -> tuple[str, ...]:
        """What can be measured on an evaluation set."""
        return self.shards(name).manifest.measures

    def train_plan(self) -> TrainPlan:
        """The order of training samples; ``train_plan().batches`` is the length of an epoch on a device."""
        return TrainPlan(
            sizes=limited(self.shards("train").sizes, self.limit_samples),
            batch_size=self.batch_size,
            world_size=self._place()[1],
            seed=self.seed,
            buffer=self.shuffle_buffer,
            epoch_length=self.epoch_length,
        )

    def train_dataloader(self) -> TrainLoader:
        """The training batches of this device."""
        plan = self.train_plan()
        urls, rank = self.shards("train").urls, self._place()[0]
        isthing = self.vocabulary().isthing
        make = partial(TrainStream, urls, plan, self.transform, rank, words=self.words, isthing=isthing)
        place = None if self.trainer is None else self._finished_batches
        loader = TrainLoader(make, plan.batches, self.options, place, self._damage)
        loader.used = self._used
        return loader

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """The evaluation batches of this device: one loader, or a list in the order of :attr:`eval_names`."""
        loaders = [self.eval_loader(name) for name in self.eval_names]
        return loaders[0] if len(loaders) == 1 else loaders

    def test_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """The same as :meth:`val_dataloader`."""
        return self.val_dataloader()

    def set_position(self, epoch: int, batches: int) -> None:
        """Start the next :meth:`train_dataloader` after ``batches`` batches of an epoch (on each device).

        Only for use without a Trainer: a Trainer knows its own place.
        """
        self._used = epoch * self.train_plan().batches + batches

    def state_dict(self) -> dict[str, Any]:
        """What the order of batches depends on; the place itself is in the Trainer's own state."""
        if self.train is None:
            return {}
        shards = "".join(shard.sha256 for shard in self.shards("train").manifest.shards)
        return {
            "shards": hashlib.sha256(shards.encode()).hexdigest(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "devices": self._place()[1],
            "num_workers": self.options.workers,
            "shuffle_buffer": self.shuffle_buffer,
            "epoch_length": self.epoch_length,
            "limit_samples": self.limit_samples,
            "transform": repr(self.transform),
            "words": self.words,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Warn if a resumed run will not see the batches that the interrupted one would have seen."""
        now = self.state_dict()
        changes = [f"{key} {old} -> {now[key]}" for key, old in state.items() if now.get(key, old) != old]
        if changes:
            _log.warning(
                "resuming with other data settings (%s): batches differ from those of the interrupted run, "
                "and samples of the current epoch may be repeated or missed",
                ", ".join(changes),
            )

    def loader_of(self, name: str) -> Callable[[tuple[int, int], frozenset[int]], EvalLoader]:
        """:meth:`eval_loader` of a set, for who learns the place only later."""
        return partial(self.eval_loader, name)

    def eval_loader(
        self, name: str, place: tuple[int, int] | None = None, done: frozenset[int] = frozenset()
    ) -> EvalLoader:
        """The batches of an evaluation set.

        Args:
            name: of the set.
            place: rank and number of ranks; None: this device's.
            done: numbers of batches that are left out, see :attr:`Batch.number`.
        """
        rank, world_size = place or self._place()
        shards, options = self.shards(name), self.sets[name]
        sizes = limited(shards.sizes, self.limit_samples)
        plan = EvalPlan(sizes, self.eval_batch_size, world_size, done)
        resize = EvalResize(
            options.short_side or self.resize.short_side, options.long_side or self.resize.long_side
        )
        stream = EvalStream(shards.urls, plan, resize, rank, shards.manifest.vocabulary.isthing)
        batches = plan.batches(rank, self.options.workers)
        complete = world_size == 1 and not done
        # at least one: Lightning takes an evaluation without batches for none, and asks for no result
        length = max(1, *(plan.batches(other, self.options.workers) for other in range(world_size)))
        return EvalLoader(stream, batches, self.options, self._damage, complete, length)

    def _finished_batches(self) -> int:
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def _place(self) -> tuple[int, int]:
        """Rank and number of ranks."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
