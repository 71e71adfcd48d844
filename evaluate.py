"""Evaluate: ``python evaluate.py ckpt=PATH [data=NAME] [KEY=VALUE] ...`` prints and saves the results."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from odise_pl.configuration import adopt, check_evaluation, check_weights, checkpoint_path, clear_errors
from odise_pl.runs import (
    digest_of,
    evaluation_folder,
    find_evaluation,
    in_sweep,
    mark_finished,
    settings_of,
)

_log = logging.getLogger(__name__)


def evaluate(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Score a checkpoint on every evaluation set; returns fractions by set and metric.

    Args:
        config: composed from ``conf/evaluate.yaml``.
        overrides: the command line, whose explicit choices win over what the checkpoint says of itself.
    """
    from odise_pl.lightning_module import describe

    path, digest = checkpoint_path(config), _digest(config)
    description = describe(path)
    if description.record is not None:
        config = adopt(config, description.record, overrides)
    check_weights(config)

    import lightning
    from hydra.utils import instantiate

    from odise_pl.callbacks import ResultReport
    from odise_pl.checkpoint import load_weights
    from odise_pl.lightning_module import OdiseModule
    from odise_pl.optimization import OptimizerSettings
    from odise_pl.vocabulary import load_vocabulary, rename

    logging.getLogger("lightning").handlers.clear()  # Hydra's handlers print the same lines
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data)
    model = instantiate(config.model)
    load_weights(model, path)
    training = description.vocabulary or load_vocabulary(config.vocabulary.train or "coco_panoptic")
    module = OdiseModule(
        model,
        instantiate(config.criterion),
        OptimizerSettings(),
        training,
        {name: rename(data.vocabulary(name), config.vocabulary.eval) for name in data.eval_names},
        global_batch=1,
        measures=[data.measures(name) for name in data.eval_names],
    )
    about = {"checkpoint": str(path), "step": description.step, "classifier": config.classifier.mode}
    folder = evaluation_folder(config, description.step, digest)
    trainer: lightning.Trainer = instantiate(
        config.trainer,
        callbacks=[ResultReport(str(folder), about), instantiate(config.progress)],
        logger=False,
        default_root_dir=config.run_dir,
    )
    trainer.validate(module, data, verbose=False)
    scores = {name: result.scalars() for name, result in module.results.items()}
    if trainer.is_global_zero:
        _log.info("written: %s", ", ".join(f"{folder}/{name}/results.{{json,md}}" for name in scores))
        mark_finished(folder, settings_of(config), scores, digest)
    return scores


def _digest(config: DictConfig) -> str:
    """Another checkpoint, or a later one of the same name, is another evaluation."""
    path = checkpoint_path(config)
    return digest_of(config, str(path.resolve()), str(path.stat().st_mtime_ns))


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Check first, then evaluate."""
    with clear_errors():
        check_evaluation(config)
        finished = find_evaluation(config, _digest(config)) if in_sweep() else None
        if finished is not None:
            _log.info("%s is finished: skipped", finished)
            return
        evaluate(config, HydraConfig.get().overrides.task)


if __name__ == "__main__":
    main()
