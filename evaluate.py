"""Evaluate: ``python evaluate.py ckpt=PATH [data=[NAME,DIR]] [KEY=VALUE] ...`` prints and saves the results.

``predictions=DIR`` instead of ``ckpt`` scores predictions of any model.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from odise_pl.distributed.launch import watch_first_process
from odise_pl.runs.command_line import expand
from odise_pl.runs.record import (
    digest_of,
    evaluation_folder,
    file_facts,
    find_evaluation,
    in_sweep,
    mark_finished,
    settings_of,
)
from odise_pl.runs.settings import (
    adopt,
    check_evaluation,
    check_weights,
    checkpoint_path,
    clear_errors,
    data_module,
)

if TYPE_CHECKING:
    import lightning

_log = logging.getLogger(__name__)


def evaluate(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Score a checkpoint on every evaluation set; returns fractions by set and metric.

    Args:
        config: composed from ``conf/evaluate.yaml``.
        overrides: the command line, whose explicit choices win over what the checkpoint says of itself.
    """
    from odise_pl.checkpoints.reading import describe

    path, digest = checkpoint_path(config), digest_of(config, *file_facts(checkpoint_path(config)))
    description = describe(path)
    if description.record is not None:
        config = adopt(config, description.record, overrides, str(path))
    check_weights(config)

    from hydra.utils import instantiate

    from odise_pl.checkpoints.io import load_weights
    from odise_pl.evaluation.predictors import NetworkPredictor
    from odise_pl.evaluation.run import Benchmark, Output, evaluate_all
    from odise_pl.models.backbones.text_store import TextStore
    from odise_pl.runs.published import BENCHMARKS
    from odise_pl.vocabulary import load_vocabulary

    trainer, data = _trainer(config), data_module(config)
    model = instantiate(config.model, mapped=True)
    load_weights(model, path)
    if config.paths.cache is not None and config.clip.weights != "random":
        model.text_store = TextStore(Path(config.paths.cache, "text"), model.clip.text_fingerprint())
    training = description.vocabulary or load_vocabulary(config.vocabulary.train or "coco_panoptic")
    benchmarks = []
    for name in data.eval_names:
        classes = data.eval_vocabulary(name, config.vocabulary.eval)
        predictor = NetworkPredictor(model, classes, training)
        loader = data.loader_of(name)
        benchmarks.append(Benchmark(name, classes, data.measures(name), predictor, loader, training))
    about = {"checkpoint": str(path), "step": description.step, "classifier": config.classifier.mode}
    folder = evaluation_folder(config, description.step, digest)
    kept = None if config.save_predictions is None else Path(config.save_predictions)
    published = BENCHMARKS[config.model.supervision]
    scores = evaluate_all(
        benchmarks, trainer, Output(folder, digest, about, published, kept, config.save_every)
    )
    if trainer.is_global_zero:
        mark_finished(folder, settings_of(config), scores, digest)
    return scores


def score(config: DictConfig) -> dict[str, dict[str, float]]:
    """Score a folder of predictions on every evaluation set; returns as :func:`evaluate`."""
    from odise_pl.evaluation.folder import find_predictions
    from odise_pl.evaluation.run import Benchmark, Output, evaluate_all
    from odise_pl.vocabulary import load_vocabulary

    root = Path(config.predictions)
    trainer, data = _trainer(config), data_module(config, eval_short_side=32)  # nobody looks at images
    training = None if config.vocabulary.train is None else load_vocabulary(config.vocabulary.train)
    benchmarks: list[Benchmark] = []
    digests: list[str] = []
    for name in data.eval_names:
        classes = data.eval_vocabulary(name, config.vocabulary.eval)
        predictor, measures = find_predictions(
            root, name, data.eval_names, classes, data.measures(name), data.vocabulary(name)
        )
        benchmarks.append(Benchmark(name, classes, measures, predictor, data.loader_of(name), training))
        digests += predictor.facts()
    # folders of one name elsewhere, and other sets, have results of their own
    place = hashlib.sha256(repr((str(root.resolve()), tuple(data.eval_names))).encode()).hexdigest()[:8]
    folder = Path(config.run_dir, "evaluation", f"predictions-{root.resolve().name}-{place}")
    output = Output(
        folder, digest_of(config, *digests), {"predictions": str(root)}, None, None, config.save_every
    )
    return evaluate_all(benchmarks, trainer, output)


def _trainer(config: DictConfig) -> lightning.Trainer:
    import lightning
    import torch
    from hydra.utils import instantiate

    from odise_pl.evaluation.run import SaveOnInterruption
    from odise_pl.training.console import quiet_libraries

    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        # sums depend on the number of threads: Lightning would give several ranks fewer of them than one rank
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    quiet_libraries()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    bar: list[Any] = [instantiate(config.progress)] if config.trainer.enable_progress_bar else []
    return instantiate(
        config.trainer,
        callbacks=[SaveOnInterruption(), *bar],
        logger=False,
        default_root_dir=config.run_dir,
    )


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Check first, then evaluate."""
    watch_first_process()
    with clear_errors(others_go_on=in_sweep()):
        check_evaluation(config)
        if config.predictions is not None:
            score(config)
            return
        digest = digest_of(config, *file_facts(checkpoint_path(config)))
        finished = find_evaluation(config, digest) if in_sweep() else None
        if finished is not None:
            _log.info("%s is finished: skipped", finished)
            return
        evaluate(config, HydraConfig.get().overrides.task)


if __name__ == "__main__":
    sys.argv[1:] = expand(sys.argv[1:], Path(__file__).with_name("conf"))
    main()
