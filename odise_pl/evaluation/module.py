"""The evaluation of one set: predict, score, save progress."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning
from torch import nn

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.loader import EvalLoader
from odise_pl.data.records import DataError
from odise_pl.distributed.shutdown import Interruption
from odise_pl.distributed.strategy import place_all
from odise_pl.evaluation.folder import FolderPredictor
from odise_pl.evaluation.progress import Progress
from odise_pl.evaluation.writer import PredictionError, PredictionWriter
from odise_pl.metrics.suite import EvaluationResult, SegmentationMetrics
from odise_pl.structures import Batch, Prediction
from odise_pl.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """One evaluation set.

    Attributes:
        name: of a set of ``data``; also in tables and folders.
        data: the samples.
        vocabulary: classes of the set.
        predictor: predicts every image of a batch at its original size.
        measures: what is measured, of :data:`~odise_pl.vocabulary.MEASURES`.
        training: classes that the model was trained on; None if unknown.
    """

    name: str
    data: PanopticDataModule
    vocabulary: Vocabulary
    predictor: nn.Module
    measures: Sequence[str]
    training: Vocabulary | None = None

    def metrics(self) -> SegmentationMetrics:
        """New metrics for the set."""
        seen = None if self.training is None else self.vocabulary.overlap(self.training)
        return SegmentationMetrics(self.vocabulary.isthing, self.vocabulary.names, seen, self.measures)


class EvaluationModule(lightning.LightningModule):
    """Validated by the trainer; afterwards :attr:`result` is the same on every rank.

    Args:
        benchmark: the set.
        progress: of this evaluation and its interrupted runs.
        writer: saves the predictions; None: they are only scored.
    """

    def __init__(self, benchmark: Benchmark, progress: Progress, writer: PredictionWriter | None) -> None:
        super().__init__()
        self.benchmark, self.writer = benchmark, writer
        self.predictor, self.metrics = benchmark.predictor, benchmark.metrics()
        self.result: EvaluationResult | None = None
        self._progress, self._interruption = progress, Interruption()

    def configure_model(self) -> None:
        """Place the network, sharded if the strategy shards it."""
        place_all(self.predictor, self.trainer)

    def val_dataloader(self) -> EvalLoader:
        """The unfinished batches of this rank; every rank must call this."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        done = self._progress.done()
        if self.writer is not None:
            done &= self.writer.done()
        self.trainer.strategy.barrier()  # every rank has looked before one changes anything
        if self.trainer.is_global_zero:
            if done:
                _log.info("%s: %d batches are done, resuming", self.benchmark.name, len(done))
            elif self.writer is not None:
                self.writer.start()
        self.trainer.strategy.barrier()
        for batch in sorted(done)[rank::world_size]:
            self.metrics.add(self._progress.read(batch))
        return self.benchmark.data.eval_loader(self.benchmark.name, (rank, world_size), done)

    def on_validation_start(self) -> None:
        """Stop on signals from now on."""
        self._interruption.listen(self.trainer)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predict and score a batch; predictions are on disk before the batch counts as done."""
        predictions = self.predictor(batch)  # even if the batch is empty: other ranks may wait
        if batch.number < 0:
            return
        if self.writer is not None:
            self.writer.write(batch, predictions)
        counts = self._score(batch, predictions)
        self._progress.add(batch.number, counts)
        self.metrics.add(counts)

    def _score(self, batch: Batch, predictions: list[Prediction]) -> dict[str, Any]:
        """The counts of a batch."""
        metrics = self.metrics.empty()
        truths = [truth for truth in batch.truths if truth is not None]
        try:
            metrics.update(predictions, truths, batch.image_ids)
        except ValueError as error:
            raise PredictionError(f"{self.benchmark.name}: predictions cannot be scored: {error}") from error
        metrics.skip(len(batch.skipped))
        return metrics.state()

    def on_validation_epoch_end(self) -> None:
        """Compute the result over all ranks and interrupted runs."""
        result = self.metrics.compute()
        if result.skipped and not result.num_images:
            name = self.benchmark.name
            raise DataError(f"{name}: no sample can be read: all are damaged or without labels")
        if isinstance(self.predictor, FolderPredictor):
            self.predictor.check_images(result)
        if self.writer is not None:
            self.trainer.strategy.barrier()
            if self.trainer.is_global_zero:
                self.writer.finish(result.num_images)
        self.result = result
