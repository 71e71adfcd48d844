"""The evaluation of several sets, one after the other, to one table."""

from __future__ import annotations

import logging
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
from odise_pl.evaluation.progress import Progress, forget
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
        measures: what is measured on it.
        predictor: predicts every image of a batch at its original size.
        loader: see :class:`EvaluationModule`.
        training: classes that the model was trained on, if they are known.
    """

    name: str
    vocabulary: Vocabulary
    measures: Sequence[str]
    predictor: nn.Module
    loader: MakeLoader
    training: Vocabulary | None = None

    def metrics(self) -> SegmentationMetrics:
        """Its metrics, before any image."""
        seen = None if self.training is None else self.vocabulary.overlap(self.training)
        return SegmentationMetrics(self.vocabulary.isthing, self.vocabulary.names, seen, self.measures)


@dataclass(frozen=True)
class Output:
    """Where results go and what is kept beside them.

    Attributes:
        folder: ``results.json``, ``.md`` and ``.csv`` of all sets, and a folder for each set.
        digest: of all that the results depend on; progress of another evaluation is not resumed.
        about: what was evaluated and how.
        published: numbers to stand beside the results.
        predictions: folder for predictions; None: they are only scored.
        save_every: seconds between savings of the progress.
    """

    folder: Path
    digest: str
    about: Mapping[str, Any]
    published: Published | None = None
    predictions: Path | None = None
    save_every: float = 60.0

    def progress(self, name: str) -> Progress:
        """Of the set ``name``."""
        return Progress(self.folder / _PROGRESS / name, self.digest, self.save_every)

    def writer(self, benchmark: Benchmark) -> PredictionWriter | None:
        """Of a set, if predictions are kept."""
        if self.predictions is None:
            return None
        return PredictionWriter(self.predictions / benchmark.name, benchmark.vocabulary, self.digest)


class EvaluationProgress(RichProgressBar):
    """A bar with the name of the set."""

    @property
    def validation_description(self) -> str:
        """The set's name."""
        module = self.trainer.lightning_module
        return module.name if isinstance(module, EvaluationModule) else super().validation_description


class SaveOnInterruption(Callback):
    """Saves the progress when an evaluation is interrupted."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save what is done."""
        assert isinstance(pl_module, EvaluationModule)
        pl_module.save()
        if isinstance(exception, Preempted) and trainer.is_global_zero:
            _log.warning(
                "stopped by %s: what is done is saved; run the command again to resume", exception.signal
            )


def evaluate_all(
    benchmarks: Sequence[Benchmark], trainer: lightning.Trainer, output: Output
) -> dict[str, dict[str, float]]:
    """Evaluate every set, print the table and write it; what an interrupted run has finished is not repeated.

    Args:
        benchmarks: the sets.
        trainer: with :class:`SaveOnInterruption` among its callbacks.
        output: where results go.

    Returns:
        fractions by set and score, on every rank.
    """
    # asked before anything runs, so that all ranks agree
    finished = {benchmark.name: _finished(benchmark, output) for benchmark in benchmarks}
    summaries = []
    for benchmark in benchmarks:
        summary = finished[benchmark.name]
        if summary is None:
            summary = _evaluate(benchmark, trainer, output)
        elif trainer.is_global_zero:
            _log.info("%s is finished: taken from the interrupted evaluation", benchmark.name)
        summaries.append(summary)
    if trainer.is_global_zero:
        _report(summaries, output)
        for benchmark in benchmarks:
            if (writer := output.writer(benchmark)) is not None:
                writer.clean()
        forget(output.folder / _PROGRESS)
    return {summary["data"]: summary["scores"] for summary in summaries}


def _finished(benchmark: Benchmark, output: Output) -> dict[str, Any] | None:
    """The result of a set that an interrupted run has finished.

    Raises:
        PredictionError: predictions are to go where others are.
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
    except SIGTERMException as error:  # of Lightning's own handler, before there is anything to save
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
