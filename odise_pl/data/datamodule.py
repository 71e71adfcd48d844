"""Shard sets as a LightningDataModule."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule

from odise_pl.data.loader import BatchSource, EvalLoader, TrainLoader
from odise_pl.data.manifest import ShardSet, open_shard_set, parse_eval_sets
from odise_pl.data.records import DataError
from odise_pl.data.sample_order import EvalPlan, TrainPlan, limit_sizes
from odise_pl.data.stream import EvalStream, TrainStream
from odise_pl.data.transforms import ColorJitter, EvalResize, LargeScaleJitter, Transform
from odise_pl.errors import SettingError, check_number
from odise_pl.vocabulary import Vocabulary, rename, seen_classes

_log = logging.getLogger(__name__)
AUGMENTATIONS = ("lsj", "none")


class PanopticDataModule(LightningDataModule):
    """Training and evaluation data from shard sets.

    A shard set is given by its folder, its ``dataset.json``, or a URL of it that WebDataset can open
    (``https://.../dataset.json``, ``pipe:aws s3 cp s3://bucket/coco/dataset.json -``).

    The order of batches depends on ``seed``, the position in training, the rank, and the numbers of ranks and
    workers, see :mod:`odise_pl.data.sample_order`. The position is the number of batches that the Trainer has
    finished, which checkpoints hold, so a run can resume within an epoch. Without a Trainer it is
    :attr:`TrainLoader.used`.

    Args:
        train: shard set to train on.
        val: shard set to evaluate on, or several by name.
        batch_size: images per forward pass on each device; "auto": set before training.
        eval_batch_size: images per evaluation step. Images of different sizes share one padded canvas and its
            windows, which changes the results.
        num_workers: loader processes per device.
        image_size: side of the square training crops.
        scale_range: scales of large-scale jitter.
        eval_short_side: shorter side in evaluation.
        eval_long_side: limit of the longer side in evaluation.
        shuffle_buffer: size of each worker's shuffle buffer in samples.
        seed: of order and augmentation.
        epoch_length: training samples of an epoch over all devices, also more than the set has; None: all.
        augment: "lsj" (large-scale jitter), or "none": training images are resized as in evaluation.
        limit_samples: use only the first samples of each set.
        words: number of noun phrases from a caption of each training image, for the caption model.
        timeout: seconds to wait for a batch.
        color_jitter: largest relative change of brightness, contrast and saturation in training.
        unseen: classes of a zero-shot split, anything that ``load_vocabulary`` reads. In training, pixels of
            classes that share a name with them are void. None: all classes are trained.

    Raises:
        SettingError: an option is invalid.
        DataError: later, if a shard set is missing or too small.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | Mapping[str, str] | None = None,
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
        words: int = 0,
        timeout: float = 600,
        color_jitter: float = 0.0,
        unseen: Any = None,
    ) -> None:
        super().__init__()
        if augment not in AUGMENTATIONS:
            raise SettingError(f"data.augment={augment} must be {' or '.join(AUGMENTATIONS)}")
        check_number("data.color_jitter", color_jitter, whole=False, most=1)
        positive = {"batch_size": 1 if batch_size == "auto" else batch_size, "image_size": image_size}
        positive |= {"eval_batch_size": eval_batch_size, "eval_short_side": eval_short_side}
        positive |= {"eval_long_side": eval_long_side}
        optional = {"epoch_length": epoch_length, "limit_samples": limit_samples}
        positive |= {name: value for name, value in optional.items() if value is not None}
        others = {"num_workers": num_workers, "shuffle_buffer": shuffle_buffer, "words": words}
        for least, numbers in ((1, positive), (0, others)):
            for name, value in numbers.items():
                check_number(f"data.{name}", value, least)
        low, high = scale_range if isinstance(scale_range, Sequence) and len(scale_range) == 2 else (0, 0)
        if not 0 < low <= high:
            raise SettingError(f"data.scale_range={scale_range} must be [SMALLEST,LARGEST], above 0")
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer samples than devices
        self.train, self._eval_sources = train, parse_eval_sets(val)
        self.batch_size = 1 if isinstance(batch_size, str) else batch_size
        self.eval_batch_size = eval_batch_size
        self.seed, self.shuffle_buffer, self.epoch_length = seed, shuffle_buffer, epoch_length
        self.limit_samples, self.words, self.unseen = limit_samples, words, unseen
        self.resize = EvalResize(eval_short_side, eval_long_side)
        jitter = LargeScaleJitter(image_size, (float(low), float(high)))
        self.transform: Transform = jitter if augment == "lsj" else self.resize
        if color_jitter:
            self.transform = ColorJitter(self.transform, color_jitter)
        self._source = BatchSource(num_workers, timeout)
        self._sets: dict[str, ShardSet] = {}

    @property
    def eval_names(self) -> tuple[str, ...]:
        """Names of the evaluation sets, in the order of the evaluation loaders."""
        return tuple(self._eval_sources)

    def setup(self, stage: str | None = None) -> None:
        """Read the manifests of the shard sets that a stage needs.

        Raises:
            DataError: one is missing; the message names it and the command that makes it.
        """
        if stage in (None, "fit"):
            self.shards("train")
        for name in self.eval_names:
            self.shards(name)

    def shards(self, name: str) -> ShardSet:
        """The shard set "train", or an evaluation set by its name (:attr:`eval_names`)."""
        source = self.train if name == "train" else self._eval_sources.get(name)
        if source is None:
            raise DataError(f"data set '{name}' is not set: give its folder, data.{name}=DIR")
        if name not in self._sets:
            self._sets[name] = open_shard_set(source)
        return self._sets[name]

    def vocabulary(self, name: str = "train") -> Vocabulary:
        """The classes of a shard set, see :meth:`shards`."""
        return self.shards(name).manifest.vocabulary

    def eval_vocabulary(self, name: str, names: Any = None) -> Vocabulary:
        """The classes of an evaluation set, optionally renamed.

        Args:
            name: of the set.
            names: anything that ``load_vocabulary`` reads, for all sets or by set; None keeps the set's own.

        Raises:
            VocabularyError: the names cannot be read, or there are too many or too few.
        """
        return rename(self.vocabulary(name), names.get(name) if isinstance(names, Mapping) else names)

    def seen_vocabulary(self, name: str = "train", names: Any = None) -> Vocabulary:
        """The classes of a set without ``unseen``, optionally renamed as by :meth:`eval_vocabulary`.

        Raises:
            VocabularyError: as there, and from :func:`~odise_pl.vocabulary.seen_classes`.
        """
        vocabulary, seen = self.eval_vocabulary(name, names), self._seen(name)
        return vocabulary if seen is None else vocabulary.select(seen)

    def _seen(self, name: str) -> tuple[int, ...] | None:
        """Indices of the seen classes of a set; None without a split."""
        return None if self.unseen is None else seen_classes(self.vocabulary(name), self.unseen)

    def measures(self, name: str) -> tuple[str, ...]:
        """What can be measured on an evaluation set."""
        return self.shards(name).manifest.measures

    def train_plan(self) -> TrainPlan:
        """The order of training samples; ``train_plan().batches`` is the length of an epoch on a device."""
        return TrainPlan(
            sizes=limit_sizes(self.shards("train").sizes, self.limit_samples),
            batch_size=self.batch_size,
            world_size=self._rank()[1],
            seed=self.seed,
            buffer=self.shuffle_buffer,
            epoch_length=self.epoch_length,
        )

    def train_dataloader(self) -> TrainLoader:
        """The training batches of this device."""
        plan, urls, isthing = self.train_plan(), self.shards("train").urls, self.vocabulary().isthing
        rank, seen = self._rank()[0], self._seen("train")
        make = partial(
            TrainStream, urls, plan, self.transform, rank, words=self.words, isthing=isthing, classes=seen
        )
        return TrainLoader(make, plan.batches, self._source, self._finished_batches if self.trainer else None)

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """The evaluation batches of this device: one loader, or a list in the order of :attr:`eval_names`."""
        loaders = [self.eval_loader(name) for name in self.eval_names]
        return loaders[0] if len(loaders) == 1 else loaders

    def eval_loader(
        self, name: str, place: tuple[int, int] | None = None, done: frozenset[int] = frozenset()
    ) -> EvalLoader:
        """The batches of an evaluation set.

        Args:
            name: of the set.
            place: rank and number of ranks; None: this device's.
            done: numbers of batches to skip, see :attr:`Batch.number`.
        """
        rank, world_size = place or self._rank()
        shards = self.shards(name)
        plan = EvalPlan(limit_sizes(shards.sizes, self.limit_samples), self.eval_batch_size, world_size, done)
        stream = EvalStream(shards.urls, plan, self.resize, rank, shards.manifest.vocabulary.isthing)
        return EvalLoader(stream, self._source)

    def state_dict(self) -> dict[str, int]:
        """What the Trainer's position refers to: images per batch, and how ranks and workers share them."""
        workers = self._source.workers
        return {"batch_size": self.batch_size, "devices": self._rank()[1], "num_workers": workers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if a resumed run reads the rest of its epoch in another order."""
        before, now = state_dict.get("num_workers"), self._source.workers
        if before not in (None, now):
            _log.warning(
                "data.num_workers was %s and is %s: samples of this epoch may be repeated or missed",
                before,
                now,
            )

    def _finished_batches(self) -> int:
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def _rank(self) -> tuple[int, int]:
        """Rank and number of ranks; those of a single process without a Trainer."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
