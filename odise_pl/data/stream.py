"""Streams of batches from a shard set, for one rank; a DataLoader runs them in its workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from odise_pl.data.collate import collate
from odise_pl.data.damage import Reports, Reserve
from odise_pl.data.decoding import DecodedSample
from odise_pl.data.reading import read_piece
from odise_pl.data.sample_order import EvalPlan, TrainPlan
from odise_pl.data.transforms import EvalResize, Transform, image_tensor, make_targets, no_targets
from odise_pl.data.words import draw_words
from odise_pl.structures import Batch, PanopticSegmentation, Sample, TrueInstances, Truth

# Keep these random streams apart from each other and from those of the plan.
_AUGMENTATION, _SUBSTITUTE, _RESERVE, _WORDS = 10, 11, 12, 13


def worker_place() -> tuple[int, int]:
    """Number of this loader worker and of all of them; (0, 1) outside of one."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class TrainStream(IterableDataset[Batch]):
    """The batches of an epoch from number ``first`` on.

    Batch ``b`` of a rank is made by worker ``b`` modulo the number of workers, as a DataLoader asks its
    workers in turn. The place of a damaged sample is taken by another one, drawn at random from a shard
    drawn at random, so the number of batches and all other places stay as they are.

    Args:
        urls: the shards.
        plan: the order of samples.
        transform: augmentation.
        rank: which rank's batches.
        epoch: which epoch.
        first: batches that were used already.
        words: noun phrases drawn from a random caption of each image.
        isthing: of the set's classes, see :func:`~odise_pl.data.decoding.decode`.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        plan: TrainPlan,
        transform: Transform,
        rank: int = 0,
        epoch: int = 0,
        first: int = 0,
        words: int = 0,
        isthing: Sequence[bool] | None = None,
    ) -> None:
        self.urls, self.plan, self.transform = urls, plan, transform
        self.rank, self.epoch, self.first, self.words = rank, epoch, first, words
        self.isthing = isthing

    def __iter__(self) -> Iterator[Batch]:
        number, workers = worker_place()
        worker = (self.first + number) % workers  # the loader's first worker makes the first batch
        start = self.first + number
        size = self.plan.batch_size
        piece = self.plan.piece(self.epoch, self.rank, worker, workers)
        items = read_piece(self.urls, piece, start // workers * size)
        reports = Reports(self.isthing)
        reserve = Reserve(self.urls, self.plan.sizes, self._random(_RESERVE, worker), self.isthing)
        for index in range(start, self.plan.batches, workers):
            samples = []
            for place, item in enumerate(itertools.islice(items, size)):
                decoded = reports.decoded(item)
                if decoded is None:
                    decoded = reserve.draw(self._random(_SUBSTITUTE, index, place))
                samples.append(self._sample(decoded, index, place))
            yield collate(samples, *reports.take())

    def _sample(self, decoded: DecodedSample, index: int, place: int) -> Sample:
        augmentation = self._random(_AUGMENTATION, index, place)
        image, ids = self.transform(decoded.image, decoded.ids, augmentation)
        return Sample(
            image=image_tensor(image),
            targets=make_targets(ids, decoded.segments),
            image_id=decoded.image_id,
            key=decoded.key,
            original_size=decoded.size,
            captions=decoded.captions,
            words=draw_words(decoded.captions, self.words, self._random(_WORDS, index, place)),
            labelled=decoded.labelled,
            generated_caption=decoded.generated_caption,
        )

    def _random(self, purpose: int, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.plan.seed, purpose, self.epoch, self.rank, *keys])


class EvalStream(IterableDataset[Batch]):
    """Every sample of a rank once, in order, with its truth; damaged and unlabelled ones are only counted.

    A batch whose samples are all damaged has no image. Training targets are empty: evaluation compares with
    :attr:`Sample.truth`, at the original size.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        plan: EvalPlan,
        resize: EvalResize,
        rank: int = 0,
        isthing: Sequence[bool] | None = None,
    ) -> None:
        self.urls, self.plan, self.resize, self.rank, self.isthing = urls, plan, resize, rank, isthing

    def __iter__(self) -> Iterator[Batch]:
        place = (self.rank, *worker_place())
        reports, items = Reports(self.isthing), read_piece(self.urls, self.plan.piece(*place))
        for number in self.plan.numbers(*place):
            samples = []
            for item in itertools.islice(items, self.plan.length(number)):
                decoded = reports.decoded(item)
                if decoded is not None and decoded.labelled:
                    samples.append(self._sample(decoded))
                elif decoded is not None:
                    reports.report(f"{decoded.key}: it has no labels to compare with")
            yield replace(collate(samples, *reports.take()), number=number)

    def _sample(self, decoded: DecodedSample) -> Sample:
        image = image_tensor(self.resize.image(decoded.image))
        return Sample(
            image=image,
            targets=no_targets((image.shape[1], image.shape[2])),
            image_id=decoded.image_id,
            key=decoded.key,
            original_size=decoded.size,
            captions=decoded.captions,
            truth=truth_of(decoded),
            generated_caption=decoded.generated_caption,
            image_suffix=decoded.image_suffix,
        )


def truth_of(decoded: DecodedSample) -> Truth:
    """What a sample's labels say, as tensors."""
    objects, semantic = decoded.objects, decoded.semantic
    return Truth(
        PanopticSegmentation(torch.from_numpy(decoded.ids), decoded.segments),
        None
        if objects is None
        else TrueInstances(
            torch.from_numpy(objects.labels),
            torch.from_numpy(objects.masks),
            torch.from_numpy(objects.crowd),
            torch.from_numpy(objects.areas),
        ),
        None if semantic is None else torch.from_numpy(semantic),
    )
