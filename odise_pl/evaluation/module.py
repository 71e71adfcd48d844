"""The evaluation of one set: predict, score, save progress."""

from __future__ import annotations

import logging
from collections.abc import Callable

import lightning
from torch import nn

from odise_pl.data.loader import EvalLoader
from odise_pl.data.records import DataError
from odise_pl.distributed.sharding import place_all
from odise_pl.distributed.shutdown import Interruption
from odise_pl.evaluation.coco_results import PredictionError
from odise_pl.evaluation.folder import FolderPredictor
from odise_pl.evaluation.progress import Progress
from odise_pl.evaluation.writer import PredictionWriter
from odise_pl.metrics.suite import EvaluationResult, SegmentationMetrics
from odise_pl.structures import Batch, Prediction

_log = logging.getLogger(__name__)
# Makes the loader of a rank from (rank, number of ranks) and the finished batches.
MakeLoader = Callable[[tuple[int, int], frozenset[int]], EvalLoader]


class EvaluationModule(lightning.LightningModule):
    """Validated by the trainer; afterwards :attr:`result` is the same on every rank.

    Args:
        name: of the set.
        predictor: predicts every image of a batch at its original size.
        metrics: of the set.
        loader: makes the loader of a rank.
        progress: of this evaluation and its interrupted runs.
        writer: saves the predictions; None: they are only scored.
    """

    def __init__(
        self,
        name: str,
        predictor: nn.Module,
        metrics: SegmentationMetrics,
        loader: MakeLoader,
        progress: Progress,
        writer: PredictionWriter | None = None,
    ) -> None:
        super().__init__()
        self.name, self.predictor, self.metrics, self.writer = name, predictor, metrics, writer
        self.result: EvaluationResult | None = None
        self._loader, self._progress = loader, progress
        self._interruption = Interruption()

    def configure_model(self) -> None:
        """Place the network, sharded if the strategy shards it."""
        place_all(self.predictor, self.trainer)

    def val_dataloader(self) -> EvalLoader:
        """The unfinished batches of this rank; every rank must call this."""
        place = (self.trainer.global_rank, self.trainer.world_size)
        self._discard_lost()
        done = self._progress.restore(self.metrics, *place)
        self.trainer.strategy.barrier()  # no rank overwrites what another has not read yet
        return self._loader(place, done)

    def _discard_lost(self) -> None:
        """Restart the set if saved predictions are missing."""
        if self.writer is None:
            return
        done = self._progress.done()
        missing = self.writer.missing(done)
        self.trainer.strategy.barrier()  # every rank has looked before one changes anything
        if missing is not None:
            _log.warning("%s of the interrupted evaluation is missing: %s restarts", missing, self.name)
        if self.trainer.is_global_zero and (missing is not None or not done):
            self._progress.discard()
            self.writer.start()
        self.trainer.strategy.barrier()

    def on_validation_start(self) -> None:
        """Save progress on signals from now on."""
        self._interruption.listen(self.trainer)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predict and score a batch; predictions are on disk before the batch counts as done."""
        predictions = self.predictor(batch)  # even if the batch is empty: other ranks may wait
        if batch.number < 0:
            return
        if self.writer is not None:
            self.writer.write(batch, predictions)
        with self._interruption.held():
            self._score(batch, predictions)
            self._progress.add(batch.number, self.metrics, self.global_rank)

    def _score(self, batch: Batch, predictions: list[Prediction]) -> None:
        truths = [truth for truth in batch.truths if truth is not None]
        try:
            self.metrics.update(predictions, truths, batch.image_ids)
        except ValueError as error:
            folder = f" in {self.predictor.folder}" if isinstance(self.predictor, FolderPredictor) else ""
            raise PredictionError(f"{self.name}: predictions{folder} cannot be scored: {error}") from error
        self.metrics.skip(len(batch.skipped))

    def on_validation_epoch_end(self) -> None:
        """Compute the result over all ranks and interrupted runs."""
        result = self.metrics.compute()
        if result.skipped and not result.num_images:
            raise DataError(f"{self.name}: no sample can be read: all are damaged or without labels")
        if isinstance(self.predictor, FolderPredictor):
            self.predictor.check_images(result)
        if self.writer is not None:
            self.trainer.strategy.barrier()
            if self.trainer.is_global_zero:
                self.writer.finish(result.num_images)
        self.result = result  # nothing left to save

    def save(self) -> None:
        """Save progress, unless the set is finished."""
        if self.result is None:
            self._progress.save(self.metrics, self.global_rank)
