"""Composed configurations: clear errors, checks before anything heavy loads, and what checkpoints keep.

Imports no torch: a run that lacks data or weights ends in a second or two.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, MissingMandatoryValue, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from odise_pl.checkpoints.files import LAST, checkpoint_folder, last_checkpoint
from odise_pl.checkpoints.record import (
    COMMANDS,
    DATA_KEYS,
    MODEL_SECTIONS,
    keep_section,
    misshapen,
    refuse_strange,
)
from odise_pl.data.eval_sets import eval_sets
from odise_pl.data.manifest import check_shards
from odise_pl.errors import SettingError, UserError
from odise_pl.models.backbones.timesteps import check_timesteps
from odise_pl.runs.folders import unwritable
from odise_pl.runs.limits import bad_numbers
from odise_pl.runs.resume import current_names
from odise_pl.vocabulary import load_vocabulary

_log = logging.getLogger(__name__)

_LIGHTNINGS = "MisconfigurationException"  # raised for options of the trainer that cannot be
_WEIGHT_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt", ".bin")


@contextmanager
def clear_errors(others_go_on: bool = False) -> Iterator[None]:
    """End the program with the message alone when the user can put right what is wrong.

    Args:
        others_go_on: in a sweep, end this run alone; Hydra raises what ended it after the last run.
    """
    try:
        yield
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        if others_go_on:
            _log.error("%s", known)
            # the kind of which Hydra shows the message alone when the sweep has ended
            raise CompactHydraException(f"error: {known}") from None
        raise SystemExit(f"error: {known}") from error


def user_error(error: BaseException | None) -> BaseException | None:
    """The user error in a chain of causes; libraries wrap what our constructors raise."""
    seen: set[int] = set()  # what comes to light while another error is handled may close a circle
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Lightning's is not imported: it would bring torch along
        if isinstance(error, UserError | MissingMandatoryValue) or type(error).__name__ == _LIGHTNINGS:
            return error
        if isinstance(error, InstantiationException) and "unexpected keyword argument" in str(error):
            return error  # a setting that this version does not know; the message names it and its place
        error = error.__cause__ or error.__context__
    return None


def check_training(config: DictConfig) -> None:
    """Everything that training reads is there, and nothing finished would be overwritten.

    Raises:
        UserError: lists all that is missing, each with the command that gets it.
    """
    problems = training_problems(config)
    if config.ckpt is not None and not checkpoint_path(config).exists():
        problems.append(
            f"ckpt={config.ckpt}: {checkpoint_path(config)} is not there; leave ckpt out to start anew"
        )
    own = checkpoint_folder(config.run_dir)
    elsewhere = config.ckpt is not None and checkpoint_path(config).resolve().parent != own.resolve()
    if elsewhere and last_checkpoint(config.run_dir) is not None:
        problems.append(
            f"run {config.run} has checkpoints of its own: add run=NAME to continue {config.ckpt}"
        )
    if elsewhere and config.init_from is not None:
        problems.append("init_from starts a new run and ckpt resumes one: give one of them")
    if config.init_from is not None and not Path(config.init_from).is_file():
        problems.append(f"init_from={config.init_from} is not there")
    _raise(problems)


def training_problems(config: DictConfig) -> list[str]:
    """What is wrong with a configuration itself or missing of what it reads, wherever the run lies."""
    return [
        *setting_problems(config),
        *_bad_vocabularies(config),
        *_missing_weights(config),
        *_unnamed(config, "train"),
        *_missing_shards(config, ("train", "val")),
        *_missing_captions(config, ("train", "val")),
    ]


def setting_problems(config: DictConfig) -> list[str]:
    """What is wrong with the settings of a training run, whatever is there on this machine."""
    problems = [*bad_numbers(config), *_bad_timesteps(config), *_bad_flags(config), *_bad_precision(config)]
    if config.grounding is not None and config.data.words < 1:
        problems.append(f"data.words={config.data.words}: captions supervise by their words; 8 are published")
    return problems


def check_evaluation(config: DictConfig) -> None:
    """What is evaluated and the evaluation sets are there; errors as :func:`check_training`."""
    problems = [*_bad_subject(config), *_bad_places(config)]
    problems += [*bad_numbers(config), *_bad_precision(config)]
    problems += [*_bad_vocabularies(config), *_unnamed(config, "val")]
    _raise([*problems, *_missing_shards(config, ("val",))])


def _bad_places(config: DictConfig) -> list[str]:
    """Folders that cannot be written."""
    options = ("run_dir", *(("save_predictions",) if config.predictions is None else ()))
    found = {option: OmegaConf.select(config, option) for option in options}
    problems = {option: unwritable(Path(place)) for option, place in found.items() if place is not None}
    return [
        f"{option}={found[option]}: {problem}; choose another folder"
        for option, problem in problems.items()
        if problem is not None
    ]


def _bad_subject(config: DictConfig) -> list[str]:
    """A checkpoint or a folder of predictions, and only one of them."""
    if (config.ckpt is None) == (config.predictions is None):
        return ["give ckpt=PATH, or predictions=DIR to score predictions that are there already"]
    if config.predictions is not None:
        there = Path(config.predictions).is_dir()
        problems = [] if there else [f"predictions={config.predictions}: there is no such folder"]
        if config.save_predictions is not None:
            problems.append("save_predictions: predictions=DIR are there already, leave it out")
        return problems
    path = checkpoint_path(config)
    if path.exists():
        return []
    hint = (
        "; in a sweep, whose runs have folders of their own, name the file" if config.ckpt == "last" else ""
    )
    return [f"ckpt={config.ckpt}: {path} is not there{hint}"]


def check_weights(config: DictConfig) -> None:
    """Diffusion steps are possible, frozen weights and captions there; errors as :func:`check_training`."""
    settings = [*bad_numbers(config), *_bad_timesteps(config), *_bad_flags(config)]
    _raise([*settings, *_missing_weights(config), *_missing_captions(config, ("val",))])


def checkpoint_path(config: DictConfig) -> Path:
    """The file or folder that ``ckpt`` names; ``last`` is the newest of this run."""
    if config.ckpt != "last":
        return Path(config.ckpt)
    return last_checkpoint(config.run_dir) or checkpoint_folder(config.run_dir) / LAST


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise SettingError("\n  - ".join(["cannot start:", *problems]))


def _bad_vocabularies(config: DictConfig) -> list[str]:
    problems = []
    for name in ("vocabulary.train", "vocabulary.eval", "captioner.vocabulary"):
        source = OmegaConf.select(config, name)
        for one in source.values() if isinstance(source, DictConfig) else [source]:
            try:
                if one is not None:
                    load_vocabulary(one)
            except UserError as error:
                problems.append(f"{name}: {error}")
    return problems


def _bad_timesteps(config: DictConfig) -> list[str]:
    try:
        check_timesteps(config.backbone.timesteps)
    except SettingError as error:
        return [str(error)]
    return []


def _bad_flags(config: DictConfig) -> list[str]:
    """Settings of the captioner that any word would switch on."""
    values = {name: config.captioner.get(name, False) for name in ("learnable_time", "on_the_fly")}
    return [
        f"captioner.{name}={value}: choose true or false"
        for name, value in values.items()
        if not isinstance(value, bool)
    ]


def _bad_precision(config: DictConfig) -> list[str]:
    """What Lightning's model parallelism cannot do."""
    sharded = str(OmegaConf.select(config, "trainer.strategy._target_")).startswith(
        "odise_pl.distributed.sharding."
    )
    if sharded and config.trainer.precision not in ("32-true", "bf16-mixed"):
        return [
            f"trainer.precision={config.trainer.precision}: trainer=fsdp computes in bf16-mixed or 32-true; "
            "choose one of them, or trainer=ddp"
        ]
    return []


def _missing_weights(config: DictConfig) -> list[str]:
    problems = []
    for name in _weights_sections(config):
        weights, source = config[name].get("weights", ""), config[name].get("source")
        if _names_file(config, weights) and not os.path.exists(weights):  # noqa: PTH110 (any text)
            get = f"get it with: {source}\n    or " if source else ""
            other = (
                "choose another captioner"
                if name == "captioner"
                else f"set {name}.weights to another file, or random to try things without"
            )
            problems.append(f"{name}.weights={weights} is not there; {get}{other}")
    return problems


def _weights_sections(config: DictConfig) -> Sequence[str]:
    return ("backbone", "clip", *(("captioner",) if config.captioner.get("on_the_fly") else ()))


def _names_file(config: DictConfig, weights: str) -> bool:
    folders = (OmegaConf.select(config, f"paths.{name}") for name in ("weights", "toyworld"))
    inside = any(folder is not None and weights.startswith(f"{folder}/") for folder in folders)
    return inside or weights.endswith(_WEIGHT_SUFFIXES) or weights.startswith(("/", "./", "../", "~"))


def _unnamed(config: DictConfig, name: str) -> list[str]:
    named = config.data[name] is not None
    return (
        []
        if named
        else [f"data.{name} names no shard set: add data.{name}=DIR, or choose a data set, data=coco"]
    )


def _missing_shards(config: DictConfig, names: Sequence[str]) -> list[str]:
    problems = []
    for name in names:
        for source in _sources(config.data[name]):
            try:
                check_shards(source)
            except UserError as error:
                problems.append(f"data.{name}: {error}")
    return problems


def _missing_captions(config: DictConfig, names: Sequence[str]) -> list[str]:
    """What a captioner that reads captions from the shards would not find there."""
    if config.captioner.get("on_the_fly", True):
        return []
    problems, models = [], {}
    for name in names:
        for source in _sources(config.data[name]):
            with suppress(UserError):  # a set that is not there at all is another problem
                captioning = check_shards(source).manifest.captioning
                if captioning is None:
                    problems.append(f"data.{name}: {_caption_first(source)}")
                else:
                    models[captioning.model, captioning.sha256, captioning.max_tokens] = source
    if len(models) > 1:
        sets = " and ".join(f"{source} by {model}" for (model, *_), source in models.items())
        problems.append(f"data: captions are not all by one model with the same settings: {sets}")
    return problems


def _caption_first(source: str) -> str:
    copy = f"{source.rstrip('/')}_captioned"
    return (
        f"{source} holds no generated captions for captioner=blip; make a copy that does with: "
        f"python -m odise_pl.data.prepare captions --shards {source} --out {copy}\n    and name it instead, "
        f"or caption every window when it is seen with captioner.on_the_fly=true"
    )


def _sources(value: Any) -> list[str]:
    """The shard sets of ``data.train`` or ``data.val``."""
    return [found.shards for found in eval_sets(value).values()]


def record(config: DictConfig) -> dict[str, Any]:
    """What a checkpoint keeps of the configuration, as plain values, see ``checkpoints/record.py``."""
    return {
        "config": {name: keep_section(config[name]) for name in MODEL_SECTIONS},
        "data": {key: config.data[key] for key in DATA_KEYS},
        "training": _training(config),
    }


def _training(config: DictConfig) -> dict[str, Any]:
    return {
        "optimizer": OmegaConf.to_container(config.optimizer, resolve=True),
        "global_batch": config.global_batch,
    }


def data_module(config: DictConfig, **changes: Any) -> Any:
    """The data module of a configuration, with some settings changed.

    Paths do not pass through ``instantiate``, which takes ``${...}`` in a folder's name for a reference.
    """
    data = OmegaConf.to_container(config.data, resolve=True)
    sets = {name: data[name] for name in ("train", "val") if name in data}  # type: ignore[operator,index,call-overload]
    return instantiate(config.data, train=None, val=None, _partial_=True, **changes)(**sets)


def refuse_changes(config: DictConfig, recorded: Mapping[str, Any] | None) -> None:
    """A resumed run keeps its optimiser, whose state is in the checkpoint: do not pretend otherwise.

    Raises:
        SettingError: the optimiser's settings or the global batch differ from the checkpoint's.
    """
    before, now = (recorded or {}).get("training"), _training(config)
    if before is None or before == now:
        return
    changes = [
        f"optimizer.{key} {before['optimizer'].get(key)} -> {value}"
        for key, value in now["optimizer"].items()
        if before["optimizer"].get(key) != value
    ]
    if before["global_batch"] != now["global_batch"]:
        changes.append(f"global_batch {before['global_batch']} -> {now['global_batch']}")
    raise SettingError(
        f"ckpt={config.ckpt}: a resumed run keeps its optimiser ({', '.join(changes)}); leave these options "
        f"as they were, or start a new run from the weights with init_from={checkpoint_path(config)}"
    )


def adopt(
    config: DictConfig, recorded: Mapping[str, Any], overrides: Sequence[str], source: str = "the checkpoint"
) -> DictConfig:
    """A configuration with the network that a checkpoint describes.

    Args:
        config: composed from the command line.
        recorded: what :func:`record` kept.
        overrides: the command line's ``KEY=VALUE``; what it names explicitly wins over the checkpoint.
        source: the checkpoint, for messages.

    Returns:
        a new configuration.

    Raises:
        SettingError: the checkpoint chooses what it may not, or weights that would be downloaded.
    """
    named = [override.lstrip("+~").partition("=")[0] for override in overrides]
    try:
        recorded = current_names(recorded)
        refuse_strange(recorded, named, source)
        merged = _merged(config, recorded, named)
        parts = misshapen(merged, config)
    except (OmegaConfBaseException, RecursionError) as error:
        cause = ascii(str(error))[1:80]
        raise SettingError(
            f"{source}: its record of settings is damaged ({cause}); take another checkpoint"
        ) from error
    if parts:
        raise SettingError(
            f"{source}: its record does not describe {', '.join(parts)}; take another checkpoint"
        )
    _refuse_downloads(merged, named, source)
    return merged


def _merged(config: DictConfig, recorded: Mapping[str, Any], named: Sequence[str]) -> DictConfig:
    merged = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    assert not isinstance(merged, ListConfig)
    with open_dict(merged):
        for section, values in recorded["config"].items():
            if section not in named:
                merged[section] = values
                if values.get("source") not in COMMANDS:
                    merged[section].pop("source", None)
        for key, value in recorded["data"].items():
            merged.data[key] = value
        for key in named:
            if "." in key and OmegaConf.select(config, key.partition(".")[0]) is not None:
                OmegaConf.update(merged, key, OmegaConf.select(config, key), merge=False, force_add=True)
    return merged


def _refuse_downloads(config: DictConfig, named: Sequence[str], source: str) -> None:
    """What is fetched is the user's choice, not a checkpoint's; nor is anything random by its silence."""
    for name in _weights_sections(config):
        weights = config[name].get("weights")
        if name in named or f"{name}.weights" in named:
            continue
        if not isinstance(weights, str):
            raise SettingError(f"{source} names no {name}.weights: add {name}.weights=FILE")
        random = weights == "random" and name != "captioner"  # for which it would be an id of the hub
        if not (random or _names_file(config, weights) or os.path.exists(weights)):  # noqa: PTH110 (any text)
            raise SettingError(
                f"{source} names {name}.weights={weights}, which would be downloaded: add "
                f"{name}.weights={weights} if you want that, or name a file"
            )
