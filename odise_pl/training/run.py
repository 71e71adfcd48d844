"""Training as a program: ``odise train``, ``python train.py``."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.distributed.processes import sole_run, watch_first_process
from odise_pl.errors import SettingError
from odise_pl.runs.checks import check_training, first_stage
from odise_pl.runs.conf import CONF
from odise_pl.runs.console import quiet_lightning
from odise_pl.runs.finished import read_objective
from odise_pl.runs.record import (
    extract_ablation_settings,
    is_finished,
    mark_finished,
    resolve_settings,
    write_settings,
)
from odise_pl.runs.resume import checkpoint_path, resolve_resume
from odise_pl.runs.sweep import report_errors

if TYPE_CHECKING:
    import lightning

    from odise_pl.data.datamodule import PanopticDataModule
    from odise_pl.training.module import OdiseModule
    from odise_pl.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


def main() -> None:
    """The command line; ``backbone=[A,B]``, which Hydra would merge, is ``backbone=two`` of both."""
    sys.argv[1:] = [word for given in sys.argv[1:] for word in _split_pair(given)]
    train_or_skip()


def _split_pair(word: str) -> list[str]:
    pair = re.fullmatch(r"backbone=\[(\w+), ?(\w+)\]", word)
    if pair is None:
        return [word]
    first, second = pair.groups()
    return ["backbone=two", f"backbone@backbone.first={first}", f"backbone@backbone.second={second}"]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train_or_skip(config: DictConfig) -> float | None:
    """Train, or skip a finished run; returns the score that a search maximises."""
    watch_first_process()
    with report_errors():
        folder, settings = Path(config.run_dir), resolve_settings(config)
        if not is_finished(folder, settings):
            check_training(config)
            with sole_run(folder):
                if not is_finished(folder, settings):  # by another process, while this one waited
                    train(config)
                    return read_objective(folder)
        _log.info("%s is finished: skipped", folder)
        return read_objective(folder)


def train(config: DictConfig) -> dict[str, float]:
    """Build everything that the configuration names and fit; a run with the same settings resumes.

    Args:
        config: composed from ``conf/train.yaml``.

    Returns:
        the last metrics in percent; nothing if the run was stopped.

    Raises:
        UserError: something is missing or does not fit together.
    """
    settings = resolve_settings(config)
    checkpoint = resolve_resume(config, settings)
    quiet_lightning()

    from odise_pl.checkpoints.metadata import check_resumable
    from odise_pl.training.faults import explain_faults
    from odise_pl.training.logger import wandb_run
    from odise_pl.training.optimization import accumulation_steps, choose_batch_size

    step = None if checkpoint is None else check_resumable(checkpoint)
    network = NetworkSettings.of_config(config)
    trainer = _trainer(config, step)
    data: PanopticDataModule = instantiate(config.data)
    module = _module(config, network, data, resume=checkpoint is not None)
    if config.data.batch_size == "auto":
        data.batch_size = choose_batch_size(config.global_batch, trainer.world_size)
    steps = accumulation_steps(config.global_batch, data.batch_size, trainer.world_size)
    trainer.accumulate_grad_batches = steps
    trainer.check_val_every_n_epoch, trainer.val_check_interval = None, config.validate_every * steps
    if trainer.is_global_zero:
        write_settings(Path(config.run_dir), settings)
    with explain_faults(trainer), wandb_run(trainer):
        trainer.fit(module, data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
        if trainer.interrupted or trainer.global_step < trainer.max_steps:
            return {}
        if module.measured_at != trainer.global_step:
            trainer.validate(module, data, verbose=False)  # the last step's results are the run's results
    if trainer.is_global_zero:
        scores = {name: result.scalars() for name, result in module.results.items()}
        mark_finished(Path(config.run_dir), extract_ablation_settings(network.model), scores)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _trainer(config: DictConfig, step: int | None) -> lightning.Trainer:
    """The trainer with its callbacks and logger.

    Args:
        config: composed.
        step: of the checkpoint that is resumed.
    """
    import lightning

    lightning.seed_everything(config.seed, workers=True, verbose=False)
    logger: dict[str, Any] = dict(config.get("logger") or {})
    if step is not None and "TensorBoard" in str(logger.get("_target_")):
        logger["purge_step"] = step  # steps that were logged, but not saved, come again
    if config.trainer.strategy == "auto" and (config.trainer.devices, config.trainer.num_nodes) != (1, 1):
        config.trainer.strategy = "ddp_find_unused_parameters_true"  # conf/trainer/ddp.yaml says why
    unused = [] if config.trainer.enable_progress_bar else ["progress"]
    unused += [] if logger else ["learning_rate"]
    callbacks = [instantiate(node) for name, node in config.callbacks.items() if name not in unused]
    return instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=instantiate(logger) if logger else False,
        default_root_dir=config.run_dir,
    )


def _module(
    config: DictConfig, network: NetworkSettings, data: PanopticDataModule, resume: bool
) -> OdiseModule:
    from odise_pl.checkpoints.metadata import describe
    from odise_pl.checkpoints.weights import load_weights
    from odise_pl.evaluation.predictors import measured
    from odise_pl.losses.contrast import ContrastCriterion
    from odise_pl.models.weights import WeightsError
    from odise_pl.training.contrast import ContrastModule
    from odise_pl.training.module import OdiseModule

    model = network.build(config.paths, mapped=True)
    classes = data.seen_vocabulary("train", config.vocabulary.train)
    if data.unseen is not None:
        unseen = sorted({*data.vocabulary("train").names} - {*data.seen_vocabulary().names})
        _log.info("%d classes have training labels; unseen are: %s", len(classes), ", ".join(unseen))
    if config.init_from is not None and not resume:
        # a second stage learns what the first does not have
        new, method = first_stage(config) or (None, "")
        first = checkpoint_path(config.init_from, config.run_dir)
        if new == "generator":
            _check_same_classes(describe(first).vocabulary, classes, config.init_from)
        try:
            load_weights(model, first, new)
        except WeightsError as error:
            if new is None:
                raise
            raise WeightsError(
                f"init_from={config.init_from}: model.{new} starts from a run of method={method} with the "
                f"same backbone, CLIP and head; {error}"
            ) from error
    criterion = instantiate(config.criterion)
    kind = ContrastModule if isinstance(criterion, ContrastCriterion) else OdiseModule
    return kind(
        model,
        criterion,
        instantiate(config.optimizer),
        classes,
        {name: data.eval_vocabulary(name, config.vocabulary.eval) for name in data.eval_names},
        config.global_batch,
        config.seed,
        network.record(),
        instantiate(config.grounding),
        config.data.words,
        [measured(model, data.measures(name), name) for name in data.eval_names],
    )


def _check_same_classes(first: Vocabulary | None, second: Vocabulary, source: str) -> None:
    if first is not None and first.names != second.names:
        differ = ", ".join(sorted({*first.names} ^ {*second.names})[:4]) or "in another order"
        raise SettingError(
            f"init_from={source} has learned other classes ({differ}): repeat its data and its split"
        )


if __name__ == "__main__":
    main()
