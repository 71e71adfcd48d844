"""Streams of batches from a shard set, for one rank; a DataLoader runs them in its workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from odise_pl.data.collate import collate
from odise_pl.data.decoding import DecodedSample, decode, try_decode
from odise_pl.data.noun_phrases import draw_words
from odise_pl.data.reading import RawSample, read_piece, read_shard
from odise_pl.data.records import DataError
from odise_pl.data.sample_order import EvalPlan, TrainPlan
from odise_pl.data.transforms import EvalResize, Transform, keep_classes, make_targets, number_segments
from odise_pl.structures import Batch, PanopticSegmentation, Sample, SampleInfo, Targets, TrueInstances, Truth

# Keys of independent random streams, also independent of those of the plan.
_AUGMENTATION, _SUBSTITUTE, _RESERVE, _WORDS = 10, 11, 12, 13
_RESERVE_SIZE = 64


def worker_position() -> tuple[int, int]:
    """Index of this loader worker and number of workers; (0, 1) in the main process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


@dataclass(eq=False)
class TrainStream(IterableDataset[Batch]):
    """The batches of an epoch from number ``first`` on.

    Worker ``b`` modulo the number of workers makes batch ``b`` of a rank, as a DataLoader asks its workers in
    turn. A random sample of a random shard replaces a damaged one, so the number of batches and the positions
    of all other samples stay the same.

    Attributes:
        urls: the shards.
        plan: the order of samples.
        transform: augmentation.
        rank: rank that uses the batches.
        epoch: number of the epoch.
        first: batches to skip.
        words: number of noun phrases drawn from a random caption of each image.
        isthing: one flag per class, see :func:`~odise_pl.data.decoding.decode`.
        classes: of the targets, as classes of the set; None: all.
    """

    urls: tuple[str, ...]
    plan: TrainPlan
    transform: Transform
    rank: int = 0
    epoch: int = 0
    first: int = 0
    words: int = 0
    isthing: Sequence[bool] | None = None
    classes: Sequence[int] | None = None

    def __iter__(self) -> Iterator[Batch]:
        number, workers = worker_position()
        worker = (self.first + number) % workers  # the loader's first worker makes the first batch
        start, size = self.first + number, self.plan.batch_size
        piece = self.plan.piece(self.epoch, self.rank, worker, workers)
        items = read_piece(self.urls, piece, start // workers * size)
        reserve: list[RawSample] = []
        for index in range(start, self.plan.batches, workers):
            samples, skipped = [], []
            for place, item in enumerate(itertools.islice(items, size)):
                decoded = try_decode(item, self.isthing)
                if isinstance(decoded, DataError):
                    skipped.append(str(decoded))
                    reserve = reserve or self._reserve(worker)
                    chosen = self._random(_SUBSTITUTE, index, place).integers(len(reserve))
                    decoded = decode(reserve[chosen])
                samples.append(self._sample(decoded, index, place))
            yield collate(samples, skipped)

    def _reserve(self, worker: int) -> list[RawSample]:
        """Readable samples of one random shard; a resumed run has the same.

        Raises:
            DataError: no shard of the set holds a readable sample.
        """
        random, cause = self._random(_RESERVE, worker), ""
        for shard in random.permutation(np.flatnonzero(self.plan.sizes)):
            chosen = np.sort(random.permutation(self.plan.sizes[shard])[:_RESERVE_SIZE])
            good = []
            for item in read_shard(self.urls[shard], chosen.tolist()):
                decoded = try_decode(item, self.isthing)
                if isinstance(decoded, DataError):
                    cause = str(decoded)
                elif isinstance(item, RawSample):
                    good.append(item)
            if good:
                return good
        raise DataError(f"no sample of {len(self.urls)} shards can be read: {cause}")

    def _sample(self, decoded: DecodedSample, index: int, place: int) -> Sample:
        augmentation = self._random(_AUGMENTATION, index, place)
        ids, segments = number_segments(decoded.ids, decoded.segments)
        if self.classes is not None:
            segments = keep_classes(segments, self.classes)
        image, ids = self.transform(decoded.image, ids, augmentation)
        words = draw_words(decoded.captions, self.words, self._random(_WORDS, index, place))
        return _sample(decoded, image, make_targets(ids, segments), words=words)

    def _random(self, purpose: int, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.plan.seed, purpose, self.epoch, self.rank, *keys])


@dataclass(eq=False)
class EvalStream(IterableDataset[Batch]):
    """Every sample of a rank once, in order, with its truth; damaged and unlabelled samples are only counted.

    A batch with only damaged samples has no images. Training targets are empty: evaluation compares with
    :attr:`Sample.truth` at the original size.
    """

    urls: tuple[str, ...]
    plan: EvalPlan
    resize: EvalResize
    rank: int = 0
    isthing: Sequence[bool] | None = None

    def __iter__(self) -> Iterator[Batch]:
        place = (self.rank, *worker_position())
        items = read_piece(self.urls, self.plan.piece(*place))
        for number in self.plan.numbers(*place):
            samples, skipped = [], []
            for item in itertools.islice(items, self.plan.length(number)):
                decoded = try_decode(item, self.isthing)
                if isinstance(decoded, DataError):
                    skipped.append(str(decoded))
                elif not decoded.labelled:
                    skipped.append(f"{decoded.key}: has no labels to compare with")
                else:
                    samples.append(self._sample(decoded))
            yield collate(samples, skipped, number)

    def _sample(self, decoded: DecodedSample) -> Sample:
        image = self.resize.image(decoded.image)
        no_targets = Targets(
            torch.empty(0, dtype=torch.int64), torch.empty(0, *image.shape[1:], dtype=torch.bool)
        )
        return _sample(decoded, image, no_targets, truth=_truth(decoded))


def _sample(decoded: DecodedSample, image: torch.Tensor, targets: Targets, **others: Any) -> Sample:
    info = {field.name: getattr(decoded, field.name) for field in fields(SampleInfo)}
    return Sample(image=image, targets=targets, original_size=decoded.size, **info, **others)


def _truth(decoded: DecodedSample) -> Truth:
    objects, semantic = decoded.objects, decoded.semantic
    arrays = () if objects is None else (objects.labels, objects.masks, objects.crowd, objects.areas)
    return Truth(
        PanopticSegmentation(torch.from_numpy(decoded.ids), decoded.segments),
        TrueInstances(*map(torch.from_numpy, arrays)) if arrays else None,
        None if semantic is None else torch.from_numpy(semantic),
    )
