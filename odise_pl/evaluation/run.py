"""The evaluation of several sets, with one table of results."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch import nn

from odise_pl.distributed.shutdown import Preempted
from odise_pl.evaluation.module import EvaluationModule, MakeLoader
from odise_pl.evaluation.progress import Progress
from odise_pl.evaluation.writer import PredictionWriter
from odise_pl.metrics.report import as_dict, write_summary, write_table
from odise_pl.metrics.suite import SegmentationMetrics
from odise_pl.metrics.tables import Published, result_table
from odise_pl.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
_PROGRESS = ".progress"  # in the folder of an evaluation


@dataclass(frozen=True)
class Benchmark:
    """One evaluation set.

    Attributes:
        name: in tables and folders.
        vocabulary: its classes.
        measures: what is measured, of :data:`~odise_pl.vocabulary.MEASURES`.
        predictor: predicts every image of a batch at its original size.
        loader: see :class:`EvaluationModule`.
        training: classes that the model was trained on; None if unknown.
    """

    name: str
    vocabulary: Vocabulary
    measures: Sequence[str]
    predictor: nn.Module
    loader: MakeLoader
    training: Vocabulary | None = None

    def metrics(self) -> SegmentationMetrics:
        """New metrics for the set."""
        seen = None if self.training is None else self.vocabulary.overlap(self.training)
        return SegmentationMetrics(self.vocabulary.isthing, self.vocabulary.names, seen, self.measures)


@dataclass(frozen=True)
class Output:
    """Where results are written, and what else is.

    Attributes:
        folder: for ``results.json``, ``.md`` and ``.csv`` of all sets, and a folder for each set.
        digest: of everything that the results depend on; progress with another digest is not resumed.
        about: what was evaluated and how.
        published: numbers to show beside the results.
        predictions: folder for predictions; None: they are only scored.
        save_every: seconds between saves of the progress.
    """

    folder: Path
    digest: str
    about: Mapping[str, Any]
    published: Published | None = None
    predictions: Path | None = None
    save_every: float = 60.0

    def progress(self, name: str) -> Progress:
        """The progress of a set."""
        return Progress(self.folder / _PROGRESS / name, self.digest, self.save_every)

    def writer(self, benchmark: Benchmark) -> PredictionWriter | None:
        """The writer of a set's predictions; None if they are not saved."""
        if self.predictions is None:
            return None
        return PredictionWriter(self.predictions / benchmark.name, benchmark.vocabulary, self.digest)


class EvaluationProgress(RichProgressBar):
    """A progress bar with the name of the set."""

    @property
    def validation_description(self) -> str:
        """The name of the set."""
        module = self.trainer.lightning_module
        return module.name if isinstance(module, EvaluationModule) else super().validation_description


class SaveOnInterruption(Callback):
    """Saves the progress when an evaluation is interrupted."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save the progress of this rank."""
        assert isinstance(pl_module, EvaluationModule)
        pl_module.save()
        if isinstance(exception, Preempted) and trainer.is_global_zero:
            _log.warning(
                "stopped by %s: progress is saved; run the command again to resume", exception.signal
            )


def evaluate_all(
    benchmarks: Sequence[Benchmark], trainer: lightning.Trainer, output: Output
) -> dict[str, dict[str, float]]:
    """Evaluate every set, then print and write the table; sets that an interrupted run finished are skipped.

    Args:
        benchmarks: the sets.
        trainer: with the callback :class:`SaveOnInterruption`.
        output: where results are written.

    Returns:
        fractions by set and score, on every rank.
    """
    # read before anything is written, so that all ranks agree
    finished = {benchmark.name: _finished(benchmark, output) for benchmark in benchmarks}
    summaries = []
    for benchmark in benchmarks:
        summary = finished[benchmark.name]
        if summary is None:
            summary = _evaluate(benchmark, trainer, output)
        elif trainer.is_global_zero:
            _log.info("%s is finished: skipped", benchmark.name)
        summaries.append(summary)
    if trainer.is_global_zero:
        _report(summaries, output)
        for benchmark in benchmarks:
            if (writer := output.writer(benchmark)) is not None:
                writer.clean()
        shutil.rmtree(output.folder / _PROGRESS, ignore_errors=True)
    return {summary["data"]: summary["scores"] for summary in summaries}


def _finished(benchmark: Benchmark, output: Output) -> dict[str, Any] | None:
    """The result of a set that an interrupted run has finished.

    Raises:
        PredictionError: other predictions would be overwritten.
    """
    summary, writer = output.progress(benchmark.name).summary(), output.writer(benchmark)
    if writer is None or (summary is not None and writer.is_complete()):
        return summary
    writer.check_folder()
    return None


def _evaluate(benchmark: Benchmark, trainer: lightning.Trainer, output: Output) -> dict[str, Any]:
    progress, writer = output.progress(benchmark.name), output.writer(benchmark)
    module = EvaluationModule(
        benchmark.name, benchmark.predictor, benchmark.metrics(), benchmark.loader, progress, writer
    )
    try:
        trainer.validate(module, verbose=False)
    except SIGTERMException as error:  # raised by Lightning's handler before the first batch
        raise Preempted from error
    assert module.result is not None
    summary = as_dict(module.result, benchmark.name)
    if trainer.is_global_zero:
        write_summary(summary, output.folder / benchmark.name, output.about)
        progress.finish(summary)
    return summary


def _report(summaries: Sequence[Mapping[str, Any]], output: Output) -> None:
    console = Console()
    console.print(result_table(summaries, output.published).terminal(console.width))
    write_table(summaries, output.folder, output.published, output.about)
    _log.info("written: %s/results.{json,md,csv}", output.folder)
