"""The evaluation of several sets, with one table of results."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from odise_pl.distributed.shutdown import Preempted
from odise_pl.evaluation.module import Benchmark, EvaluationModule
from odise_pl.evaluation.progress import Progress
from odise_pl.evaluation.writer import PredictionWriter
from odise_pl.metrics.report import as_dict, write_summary, write_table
from odise_pl.metrics.tables import Published, result_table
from odise_pl.runs.record import write_settings
from odise_pl.vocabulary import MEASURES

_log = logging.getLogger(__name__)
_PROGRESS = ".progress"  # in the folder of an evaluation


@dataclass(frozen=True)
class Output:
    """What is written.

    Attributes:
        folder: for ``config.yaml``, ``results.{json,md,csv}`` of all sets, and a folder for each set.
        settings: everything that the results depend on; progress with other settings is not resumed.
        about: what was evaluated and how.
        published: numbers to show beside the results.
        predictions: folder for predictions; None: they are only scored.
    """

    folder: Path
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    published: Published | None = None
    predictions: Path | None = None

    @cached_property
    def digest(self) -> str:
        """Identifies the settings."""
        text = json.dumps(self.settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def progress(self, name: str) -> Progress:
        """The progress of a set."""
        return Progress(self.folder / _PROGRESS / name, self.digest)

    def writer(self, benchmark: Benchmark) -> PredictionWriter | None:
        """The writer of a set's predictions; None if they are not saved."""
        if self.predictions is None:
            return None
        folder, model = self.predictions / benchmark.name, getattr(benchmark.predictor, "model", None)
        kinds = MEASURES if model is None else model.measures
        return PredictionWriter(folder, benchmark.vocabulary, self.digest, kinds)


def evaluate_all(
    benchmarks: Sequence[Benchmark], trainer: lightning.Trainer, output: Output
) -> dict[str, dict[str, float]]:
    """Evaluate every set, then print and write the table; sets that an interrupted run finished are skipped.

    Args:
        benchmarks: the sets.
        trainer: runs the predictors.
        output: what is written.

    Returns:
        fractions by set and score, on every rank.

    Raises:
        PredictionError: other predictions would be overwritten, or predictions are missing or damaged.
    """
    # read before anything is written, so that all ranks agree
    finished = {benchmark.name: _finished(benchmark, output) for benchmark in benchmarks}
    if trainer.is_global_zero:
        write_settings(output.folder, output.settings)
        for name in (name for name, summary in finished.items() if summary is not None):
            _log.info("%s is finished: skipped", name)
    summaries = [finished[one.name] or _evaluate(one, trainer, output) for one in benchmarks]
    if trainer.is_global_zero:
        console = Console()
        console.print(result_table(summaries, output.published).terminal(console.width))
        write_table(summaries, output.folder, output.published, output.about)
        _log.info("written: %s/results.{json,md,csv}", output.folder)
        for benchmark in benchmarks:
            if (writer := output.writer(benchmark)) is not None:
                writer.clean()
        shutil.rmtree(output.folder / _PROGRESS, ignore_errors=True)
    return {summary["data"]: summary["scores"] for summary in summaries}


def _finished(benchmark: Benchmark, output: Output) -> dict[str, Any] | None:
    """The result of a set that an interrupted run has finished."""
    summary, writer = output.progress(benchmark.name).summary(), output.writer(benchmark)
    if writer is not None and (summary is None or not writer.is_complete()):
        writer.check_folder()
        return None
    return summary


def _evaluate(benchmark: Benchmark, trainer: lightning.Trainer, output: Output) -> dict[str, Any]:
    if trainer.is_global_zero:
        _log.info("evaluating %s", benchmark.name)
    progress = output.progress(benchmark.name)
    module = EvaluationModule(benchmark, progress, output.writer(benchmark))
    try:
        trainer.validate(module, verbose=False)
    except SIGTERMException as error:  # raised by Lightning's handler before the first batch
        raise Preempted from error
    except Preempted as error:
        if trainer.is_global_zero:
            _log.warning("stopped by %s: run the command again to resume", error.signal)
        raise
    assert module.result is not None
    summary = as_dict(module.result, benchmark.name)
    if trainer.is_global_zero:
        write_summary(summary, output.folder / benchmark.name, output.about)
        progress.finish(summary)
    return summary
