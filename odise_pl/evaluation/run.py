"""Evaluation as a program: ``odise evaluate``, ``python evaluate.py``."""

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
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from odise_pl.checkpoints.description import SIDES, NetworkSettings, model_key, read_record
from odise_pl.checkpoints.files import checkpoint_folder
from odise_pl.data.manifest import parse_eval_sets
from odise_pl.distributed.processes import watch_first_process
from odise_pl.errors import SettingError
from odise_pl.runs.checks import check_evaluation, check_network
from odise_pl.runs.conf import CONF
from odise_pl.runs.console import quiet_lightning
from odise_pl.runs.record import (
    evaluation_folder,
    extract_ablation_settings,
    in_sweep,
    is_finished,
    mark_finished,
    read_settings,
)
from odise_pl.runs.resume import checkpoint_path
from odise_pl.runs.sweep import report_errors

if TYPE_CHECKING:
    import lightning

    from odise_pl.checkpoints.metadata import CheckpointDescription

_log = logging.getLogger(__name__)
Scores = dict[str, dict[str, float]]


def main() -> None:
    """The command line; the checkpoint's backbone may have settings that the composed one lacks."""
    sys.argv[1:] = [f"++{word}" if word.startswith("backbone.") else word for word in sys.argv[1:]]
    _main()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def _main(config: DictConfig) -> None:
    """Check the settings, then evaluate a checkpoint or a folder of predictions."""
    watch_first_process()
    with report_errors():
        check_evaluation(config)
        quiet_lightning()
        if config.predictions is not None:
            score_predictions(config)
        else:
            evaluate(config, HydraConfig.get().overrides.task)


def evaluate(config: DictConfig, overrides: Sequence[str] = ()) -> Scores:
    """Score a checkpoint on every evaluation set.

    Args:
        config: composed from ``conf/evaluate.yaml``.
        overrides: the command line; network settings in it replace the checkpoint's.

    Returns:
        fractions by set and metric; empty if a sweep skips this evaluation because it is finished.
    """
    from odise_pl.checkpoints.metadata import describe
    from odise_pl.checkpoints.weights import load_weights
    from odise_pl.evaluation.benchmarks import Benchmark, Output, evaluate_all
    from odise_pl.evaluation.predictors import NetworkPredictor, measured
    from odise_pl.runs.published import METHODS
    from odise_pl.vocabulary import load_vocabulary

    path = checkpoint_path(config.ckpt, config.run_dir)
    described = describe(path)
    step, network = described.step, _network(config, described, overrides, str(path))
    known = described.vocabulary
    if known is not None and config.data.get("unseen") is not None:
        raise SettingError("data.unseen: this checkpoint knows its training classes; remove the split")
    check_network(network, config.paths, config)
    sides, mode = dict(zip(SIDES, network.sides, strict=True)), network.model["classifier"]["mode"]
    description = OmegaConf.to_container(network.resolved(config.paths), resolve=True)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    seed = {"seed": network.seed} if "random" in network.weights().values() else {}
    settings = _settings(config, network=description, **sides, **seed, checkpoint=sha256, step=step)
    words = [_set_names(config), mode, *([] if step is None else [f"step_{step}"])]
    folder = evaluation_folder(Path(config.run_dir), words, settings)
    if in_sweep() and is_finished(folder, settings):
        _log.info("%s is finished: skipped", folder)
        return {}

    trainer, data = _trainer(config), instantiate(config.data, **sides)
    model = network.build(config.paths, mapped=True)
    load_weights(model, path)
    usual = known or load_vocabulary(config.vocabulary.train or "coco_panoptic")
    benchmarks = []
    for name in data.eval_names:
        classes = data.eval_vocabulary(name, config.vocabulary.eval)
        training = usual if data.unseen is None else data.seen_vocabulary(name)
        predictor = NetworkPredictor(model, classes, training)
        measures = measured(model, data.measures(name), name)
        seen = training if model.learns_labels or data.unseen is not None else known
        benchmarks.append(Benchmark(name, data, classes, predictor, measures, seen))
    about = {"checkpoint": str(path), "step": step, "classifier": mode}
    settled = extract_ablation_settings(network.model)
    trained_with = _training(path, described)
    split = config.data.get("unseen") or trained_with.get("data", {}).get("unseen")
    published = METHODS.get(settled.method) if split is None else None
    kept = None if config.save_predictions is None else Path(config.save_predictions)
    output = Output(folder, settings, about, published, kept)
    scores = evaluate_all(benchmarks, trainer, output)
    if trainer.is_global_zero:
        mark_finished(folder, settled, scores, trained_with)
    return scores


def score_predictions(config: DictConfig) -> Scores:
    """Score a folder of predictions of any model on every evaluation set.

    Returns:
        fractions by set and metric.
    """
    from odise_pl.evaluation.benchmarks import Benchmark, Output, evaluate_all
    from odise_pl.evaluation.folder import FolderPredictor
    from odise_pl.vocabulary import load_vocabulary

    root = Path(config.predictions)
    trainer, data = _trainer(config), instantiate(config.data, eval_short_side=32)  # images are not used
    training = None if config.vocabulary.train is None else load_vocabulary(config.vocabulary.train)
    benchmarks: list[Benchmark] = []
    fingerprints: list[str] = []
    for name in data.eval_names:
        nested = len(data.eval_names) > 1 or (root / name).is_dir()
        predictor = FolderPredictor(root / name if nested else root, data.vocabulary(name))
        measures = predictor.measures(data.measures(name))
        classes = data.eval_vocabulary(name, config.vocabulary.eval)
        seen = data.seen_vocabulary(name) if training is None and data.unseen is not None else training
        benchmarks.append(Benchmark(name, data, classes, predictor, measures, seen))
        fingerprints.append(predictor.fingerprint())
    settings = _settings(config, predictions=fingerprints)
    folder = evaluation_folder(Path(config.run_dir), ["predictions", root.resolve().name], settings)
    output = Output(folder, settings, {"predictions": str(root)})
    return evaluate_all(benchmarks, trainer, output)


def _network(
    config: DictConfig, described: CheckpointDescription, overrides: Sequence[str], source: str
) -> NetworkSettings:
    """The network that a checkpoint describes, with the settings of the command line."""
    record = described.record
    composed = NetworkSettings.of_config(config)
    if record is None:
        preset = described.preset.partition("=")[2]
        if composed.model.get("method") not in (preset, None):
            raise SettingError(f"{source} is of another method: add {described.preset}")
        return composed
    named = [override.lstrip("+~").partition("=")[0] for override in overrides]
    # a choice of classifier keeps the checkpoint's fusion and prompts
    named = ["classifier.mode" if name == "classifier" else name for name in named]
    if "method" in named:
        raise SettingError(
            f"method={composed.model.get('method')}: {source} says of which method it is; remove it, and set "
            "what is to differ, such as fusion.unseen_share=0.8"
        )
    if "model" in named:
        return composed
    named += ["fusion.mask_prompt", "fusion.clip_prompt"] if "prompts" in named else []
    changes = {
        key: OmegaConf.select(OmegaConf.create(dict(composed.model)), place)
        for key in named
        if (place := model_key(key)) is not None
    }
    changes |= {f"data.{name}": config.data[name] for name in SIDES if f"data.{name}" in named}
    changes |= {"seed": config.seed} if "seed" in named else {}
    return read_record(record, source, named).changed(changes)


def _training(path: Path, described: CheckpointDescription) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, as far as they are known: of its run, or its seed."""
    if described.record is None:
        return {}
    folder = path.absolute().parent.parent
    known = read_settings(folder) if path.absolute().parent == checkpoint_folder(folder) else None
    return known or {key: value for key, value in described.record.items() if key == "seed"}


def _settings(config: DictConfig, **subject: Any) -> dict[str, Any]:
    """Everything that the scores depend on."""
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    network = ("train", *SIDES)  # unused, and given by the network
    limit = config.trainer.get("limit_val_batches")
    return {
        **subject,
        "data": {key: value for key, value in data.items() if key not in network},
        "vocabulary": OmegaConf.to_container(config.vocabulary, resolve=True),
        "precision": config.trainer.precision,
        **({} if limit is None else {"limit_val_batches": limit}),
        "save_predictions": config.save_predictions,
        "paths": OmegaConf.to_container(config.paths, resolve=True),
    }


def _set_names(config: DictConfig) -> str:
    """The evaluation sets as part of a folder name."""
    sets = parse_eval_sets(config.data.val)
    unnamed = isinstance(config.data.val, str)
    return "+".join(Path(source).name if unnamed else name for name, source in sets.items())


def _trainer(config: DictConfig) -> lightning.Trainer:
    import lightning
    import torch
    from lightning.pytorch.callbacks import RichProgressBar

    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        # sums depend on the number of threads, and Lightning gives each of several ranks fewer of them
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    callbacks = [RichProgressBar()] if config.trainer.enable_progress_bar else []
    return instantiate(config.trainer, callbacks=callbacks, logger=False, default_root_dir=config.run_dir)


if __name__ == "__main__":
    main()
