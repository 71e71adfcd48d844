"""Train: ``python train.py [GROUP=CHOICE] [KEY=VALUE] ...``; the defaults are the published COCO run."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from odise_pl.distributed.launch import sole_run, watch_first_process
from odise_pl.runs.command_line import expand
from odise_pl.runs.record import digest_of, in_sweep, mark_finished, settings_of
from odise_pl.runs.resume import goes_on, keep
from odise_pl.runs.settings import (
    check_training,
    checkpoint_path,
    clear_errors,
    data_module,
    record,
    refuse_changes,
)


def train(config: DictConfig) -> dict[str, float]:
    """Build everything the configuration names and fit; returns the last metrics in percent."""
    import lightning
    from hydra.utils import instantiate

    from odise_pl.checkpoints.reading import description_of
    from odise_pl.training.batch_size import fit_to_device
    from odise_pl.training.console import quiet_libraries
    from odise_pl.training.faults import explain_faults
    from odise_pl.training.module import OdiseModule
    from odise_pl.training.optimization import accumulation_steps
    from odise_pl.vocabulary import rename

    logger, description = dict(config.get("logger") or {}), None
    if config.ckpt is not None:
        description = description_of(checkpoint_path(config))
        refuse_changes(config, description.record)
        if "TensorBoard" in str(logger.get("_target_")):
            logger["purge_step"] = description.step  # steps that were logged, but not saved, come again
    quiet_libraries()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data = data_module(config)
    bar = config.trainer.enable_progress_bar
    callbacks = [instantiate(node) for name, node in config.callbacks.items() if bar or name != "progress"]
    trainer: lightning.Trainer = instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=instantiate(logger) if logger else False,
        default_root_dir=config.run_dir,
    )
    model = instantiate(config.model, mapped=True)
    if config.init_from is not None and config.ckpt is None:
        from odise_pl.checkpoints.io import load_weights

        load_weights(model, config.init_from)
    module = OdiseModule(
        model,
        instantiate(config.criterion),
        instantiate(config.optimizer),
        rename(data.vocabulary("train"), config.vocabulary.train),
        {name: data.eval_vocabulary(name, config.vocabulary.eval) for name in data.eval_names},
        config.global_batch,
        config.seed,
        record(config),
        instantiate(config.grounding),
        config.data.words,
        [data.measures(name) for name in data.eval_names],
    )
    before, windows = None if description is None else description.batch_size, config.backbone.window_batch
    sizes = fit_to_device(module, trainer, config.data.image_size, config.data.batch_size, windows, before)
    data.batch_size, module.model.backbone.window_batch = sizes.batch, sizes.windows
    steps = accumulation_steps(config.global_batch, sizes.batch, trainer.world_size)
    trainer.accumulate_grad_batches = steps
    trainer.check_val_every_n_epoch, trainer.val_check_interval = None, config.validate_every * steps
    if trainer.is_global_zero:
        keep(config)
    checkpoint = None if config.ckpt is None else str(checkpoint_path(config))
    with explain_faults(trainer):
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        if trainer.interrupted or trainer.global_step < trainer.max_steps:
            return {}
        if module.measured_at != trainer.global_step:
            trainer.validate(module, data, verbose=False)  # the last step's results are the run's results
    if trainer.is_global_zero:
        scores = {name: result.scalars() for name, result in module.results.items()}
        mark_finished(Path(config.run_dir), settings_of(config), scores, digest_of(config))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Check first, then train."""
    watch_first_process()
    with clear_errors(others_go_on=in_sweep()), sole_run(config.run_dir):
        if goes_on(config):
            check_training(config)
            train(config)


if __name__ == "__main__":
    sys.argv[1:] = expand(sys.argv[1:], Path(__file__).with_name("conf"))
    main()
